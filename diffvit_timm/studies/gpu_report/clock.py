"""Everything that differs between a GPU and a CPU when a step is timed."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator

import torch

__all__ = ["Clock", "float32_products"]

FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU

Step = Callable[[], object]


class Clock:
    """Times steps on one device.

    Args:
        device: device of the steps. On a CPU a step is timed as it is, without a cold cache and without a graph.

    Attributes:
        compile_backend: backend of torch.compile.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        # Compiling C++ takes minutes, and says nothing about a GPU.
        self.compile_backend = "inductor" if self.is_cuda else "eager"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if self.is_cuda else None

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def wall(self, step: Step) -> float:
        """Return the seconds from the call of a step until the device has finished it (latency)."""
        return self.queued(step, 1)

    def queued(self, step: Step, count: int) -> float:
        """Return the seconds per step of several steps with one synchronisation at their end (throughput)."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            step()
        self.synchronize()
        return (time.perf_counter() - start) / count

    def device_time(self, step: Step) -> float:
        """Return the seconds that the GPU takes for a step, with a cold L2 cache; on a CPU as `wall`.

        Writing the buffer empties the cache. Meanwhile the CPU has time to launch the step, so that a step that is a
        CUDA graph is not delayed by Python.
        """
        if not self.is_cuda or self._flush is None:
            return self.wall(step)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        self._flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def graph(self, step: Step) -> tuple[Step, bool]:
        """Return a step as a CUDA graph of one call, and whether that was possible; on a CPU the step itself.

        The step runs three times before, because kernels are compiled and libraries are loaded by the first calls.
        """
        if not self.is_cuda:
            step()
            return step, False
        own = torch.cuda.current_stream(self.device)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(own)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step()
            own.wait_stream(stream)
            self.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                kept = step()
        except RuntimeError:
            torch.cuda.set_stream(own)  # a capture that fails leaves its stream behind
            self.synchronize()
            return step, False

        def replay(kept: object = kept) -> None:  # the outputs must stay alive
            graph.replay()

        return replay, True

    def peak_mb(self, step: Step) -> float | None:
        """Return the peak of the memory that a step allocates in MiB, without what was allocated before; None: CPU."""
        if not self.is_cuda:
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        step()
        self.synchronize()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def free_mb(self) -> float | None:
        """Return the free memory of the GPU in MiB; None on a CPU."""
        if not self.is_cuda:
            return None
        self.free_memory()
        return torch.cuda.mem_get_info(self.device)[0] / 2**20

    def free_memory(self) -> None:
        """Return the memory of deleted tensors and graphs to the GPU."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Compute float32 products and convolutions in TF32 ("tf32") or exactly ("fp32") within this context.

    Another precision changes nothing.
    """
    if precision not in ("tf32", "fp32"):
        yield
        return
    tf32 = precision == "tf32"
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
