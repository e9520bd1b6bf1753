"""Limits of items, photos, recommendations and searches. The service enforces them; the export keeps them."""

MAX_ITEM_CHARS = 20_000  # of one item, all its fields together; a service may set another limit
MAX_HISTORY = 500  # item ids in `history`
MAX_EXCLUDED = 1_000  # item ids in `exclude_item_ids`
MAX_LIMIT = 100  # items on one page
MAX_CANDIDATES = 1_000  # item ids in `item_ids` of POST /rank
MAX_BATCH_QUERIES = 256  # in one POST /recommend/batch
MAX_QUERY_CHARS = 1_000  # of the text of POST /search; far more than its picture can show

MAX_PICTURE_BYTES = 10 * 2**20  # of one photo as it is sent; a service may set another limit
MAX_PICTURE_PIXELS = 25_000_000  # width times height; a service may set another limit
MAX_PICTURE_FRAMES = 1_000  # of an animation, of which only the first frame is read
# A JPEG may have any number of scans, and each one touches every pixel. Encoders write about ten.
MAX_JPEG_SCANS = 100
MAX_SCANNED_PIXELS = 500_000_000  # pixels times scans: a second or two of one core
