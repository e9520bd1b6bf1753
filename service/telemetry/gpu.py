"""Memory and use of the GPUs, if there are any and nvidia-ml-py is installed."""

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from prometheus_client import Metric
from prometheus_client.registry import Collector

from service.telemetry.families import MetricFamilies

log = logging.getLogger(__name__)


def find_nvml() -> Any | None:
    """NVIDIA's library, initialized. None if this machine lacks it or its driver."""
    try:
        import pynvml
    except ImportError:  # not in the extra `cpu`
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no metrics of a GPU: %s", error)
        return None
    return pynvml


class GpuCollector(Collector):
    """Asks the GPUs at each scrape. A GPU that does not report a value, as some do not, has none here."""

    def __init__(self, nvml: ModuleType | Any, families: MetricFamilies) -> None:
        self._nvml = nvml
        self._families = families
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        families = self._families
        for gpu, handle in enumerate(self._handles):
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                families.gpu_memory_used_bytes.labels(gpu).set(memory.used)
                families.gpu_memory_total_bytes.labels(gpu).set(memory.total)
                busy_percent = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
                families.gpu_utilization_ratio.labels(gpu).set(busy_percent / 100)
            except self._nvml.NVMLError as error:
                log.debug("GPU %d does not report: %s", gpu, error)
        yield from families.gpu_memory_used_bytes.collect()
        yield from families.gpu_memory_total_bytes.collect()
        yield from families.gpu_utilization_ratio.collect()
