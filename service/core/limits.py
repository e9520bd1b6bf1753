"""Limits of items and of requests to POST /recommend, which the service enforces and the export keeps."""

MAX_ITEM_CHARS = 20_000  # of one item, all its fields together; a service may set another limit
MAX_HISTORY = 500  # item ids in `history`
MAX_EXCLUDED = 1_000  # item ids in `exclude_item_ids`
MAX_LIMIT = 100  # items on one page
