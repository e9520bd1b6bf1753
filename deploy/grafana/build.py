"""Write the JSON files that Grafana reads from the code that describes the dashboards.

python -m deploy.grafana.build          # or make dashboards
"""

import json
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import catalog, latency, model, resources, service

FOLDER = Path(__file__).with_name("dashboards")


def dashboards() -> Iterator[tuple[str, str]]:
    """The name and text of each file."""
    for module in (service, latency, catalog, model, resources):
        text = json.dumps(module.build(), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False)
        yield f"{module.__name__.rpartition('.')[2]}.json", text + "\n"


def main() -> None:
    """Overwrite the JSON files in `dashboards/`. A test compares them with the code."""
    for name, text in dashboards():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
