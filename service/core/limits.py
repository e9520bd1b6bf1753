"""Limits of a request to POST /recommend. The service enforces them; the demo and the study keep them."""

MAX_HISTORY = 500  # item ids in `history`
MAX_EXCLUDED = 1_000  # item ids in `exclude_item_ids`
MAX_LIMIT = 100  # items on one page
