"""What /metrics says, as numbers that a test can ask for."""

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families


def read(text):
    """Every sample: (name, labels as sorted pairs) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client):
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return read(answer.text)


def value(samples, name, **labels):
    return samples["glyphrec_" + name, tuple(sorted(labels.items()))]


def by_label(samples, name, label):
    """Sums by one label."""
    found = Counter()
    for (each, labels), number in samples.items():
        if each == "glyphrec_" + name:
            found[dict(labels)[label]] += number
    return found
