"""Work on many jobs, in this process, in several, or on a Ray cluster; a free worker takes the next job.

    with open_executor(start, engine="local", workers=2) as executor:
        for job, result in executor.map(work, jobs): ...

`start(slot)` makes what a worker keeps between jobs (a loaded model, say), once per worker, when its first job comes;
`work(state, job)` does a job. A job whose worker died, or that failed, is given to another worker, up to `RETRIES`
times; a `LimelightError` ends the map at once, as the user has to act on it. Results come in the order in which they
are done, so written files must not depend on it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import LimelightError, MissingDependency, SettingsError
from .numbers import check_finite
from .progress import quiet

ENGINES = ("local", "ray")
RETRIES = 2
Start = Callable[[int], Any]
Work = Callable[[Any, Any], Any]


class ExecutorError(LimelightError, RuntimeError):
    """A job failed again and again."""


class Executor(ABC):
    """Workers that keep a state."""

    workers: int

    @abstractmethod
    def map(self, work: Work, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Do jobs, taken from the iterable as workers become free; yields each job with its result.

        Raises:
            ExecutorError: a job failed `RETRIES` times more than once.
            LimelightError: of a job.
        """


@contextmanager
def open_executor(
    start: Start,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float = 1,
) -> Iterator[Executor]:
    """Workers for the time of a `with`.

    Args:
        start: makes the state of the worker in slot 0, 1, ...; importable, as it travels to other processes.
        engine: "local" or "ray".
        workers: how many; by default one per GPU, and where there is none one per CPU core. One local worker is this
            process.
        address: of a Ray cluster, e.g. "auto" or "ray://host:10001"; None is a Ray of this machine's own.
        gpus_per_worker: how many GPUs (or CPU cores, where there is no GPU) each Ray worker takes.

    Raises:
        SettingsError: the engine is unknown, or the cluster cannot be reached.
        MissingDependency: Ray is not installed.
    """
    check_finite(gpus_per_worker=gpus_per_worker)
    if engine not in ENGINES:
        raise SettingsError(f"Unknown engine '{engine}'. Choose one of: {', '.join(ENGINES)}.")
    if workers is not None and workers < 1:
        raise SettingsError(f"workers={workers} must be at least 1.")
    if address is not None and engine != "ray":
        raise SettingsError(f"The address '{address}' is Ray's; use it with engine ray.")
    executor: _Serial | _Processes | _Actors
    if engine == "ray":
        executor = _Actors(start, workers, address, gpus_per_worker)
    else:
        count = workers or torch.cuda.device_count() or _cores()
        executor = _Serial(start) if count == 1 else _Processes(start, count)
    try:
        yield executor
    finally:
        executor.close()


def device_of(slot: int, device: str | None = None) -> str | None:
    """The device of the worker in a slot: where CUDA is asked for, or nothing is, the GPUs in turns."""
    if device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{slot % torch.cuda.device_count()}"
    return device


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, sums depend in their last digits on the number of threads; workers are what makes use of the cores."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A state that is made when the first job comes."""

    def __init__(self, start: Start, slot: int = 0) -> None:
        self._start, self._slot, self._made = start, slot, list[Any]()

    def do(self, work: Work, job: Any) -> Any:
        if not self._made:
            self._made.append(self._start(self._slot))
        return work(self._made[0], job)


class _Queue:
    """Jobs that wait, those that come again first."""

    def __init__(self, jobs: Iterable[Any]) -> None:
        self._new = ((job, 0) for job in jobs)
        self._again: deque[tuple[Any, int]] = deque()

    def take(self) -> tuple[Any, int] | None:
        """A job and how often it has failed; None where all are given out."""
        return self._again.popleft() if self._again else next(self._new, None)

    def give_back(self, job: Any, failures: int, error: BaseException) -> None:
        if isinstance(error, LimelightError):
            raise error
        if failures >= RETRIES:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExecutorError(f"The job {str(job)[:200]} failed {failures + 1} times: {reason}") from error
        self._again.append((job, failures + 1))


class _Serial(Executor):
    """This process alone."""

    workers = 1

    def __init__(self, start: Start) -> None:
        self._worker = _Worker(start)

    def map(self, work: Work, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        queue = _Queue(jobs)
        while (taken := queue.take()) is not None:
            try:
                result = self._worker.do(work, taken[0])
            except Exception as error:
                queue.give_back(*taken, error)
            else:
                yield taken[0], result

    def close(self) -> None:
        pass


_here: list[_Worker] = []  # of a worker process


def _begin(start: Start, slots: Any) -> None:
    quiet()  # bars and warnings of several processes would write over each other
    warnings.simplefilter("ignore")
    _here.append(_Worker(start, slots.get()))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:  # a worker whose parent was killed would wait for jobs for ever
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _do(work: Work, job: Any) -> Any:
    return _here[0].do(work, job)


class _Processes(Executor):
    """Processes of this machine."""

    def __init__(self, start: Start, workers: int) -> None:
        self._start, self.workers = start, workers
        self._open()

    def _open(self) -> None:
        context = multiprocessing.get_context("spawn")
        slots = context.Queue()
        for slot in range(self.workers):
            slots.put(slot)
        self._pool = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_begin, initargs=(self._start, slots)
        )

    def map(self, work: Work, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        queue, flying = _Queue(jobs), dict[Future[Any], tuple[Any, int]]()
        while True:
            while len(flying) < self.workers and (taken := queue.take()) is not None:
                flying[self._submit(work, taken[0])] = taken
            if not flying:
                return

            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                taken, error = flying.pop(future), future.exception()
                if error is None:
                    yield taken[0], future.result()
                else:
                    broken = broken or isinstance(error, BrokenProcessPool)
                    queue.give_back(*taken, error)

            if broken:
                self._reopen(queue, flying)

    def _reopen(self, queue: _Queue, flying: dict[Future[Any], tuple[Any, int]]) -> None:
        """Start new processes: the pool ends with the first worker that dies, and it is unknown whose job that was."""
        for future, taken in flying.items():
            queue.give_back(*taken, future.exception() or BrokenProcessPool("a worker died"))
        flying.clear()
        self.close()
        self._open()

    def _submit(self, work: Work, job: Any) -> Future[Any]:
        try:
            return self._pool.submit(_do, work, job)
        except BrokenProcessPool as error:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Actor(_Worker):
    """A Ray worker. It is in slot 0, as Ray shows it its own GPUs only."""

    def ready(self) -> int:
        """Its process: answered only once the cluster has room for it."""
        quiet()
        return os.getpid()


class _Actors(Executor):
    """Actors of a Ray cluster."""

    def __init__(self, start: Start, workers: int | None, address: str | None, gpus_per_worker: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependency(
                "The engine 'ray' needs Ray. Install it: pip install 'limelight[cluster]'."
            ) from error

        self._ray, self._start, self._ours = ray, start, not ray.is_initialized()
        if self._ours:
            self._connect(workers, address)

        there = ray.cluster_resources()
        kind = "GPU" if there.get("GPU") else "CPU"
        self.workers = workers or max(int(there.get(kind, 1) / gpus_per_worker), 1)
        options = {"num_gpus": gpus_per_worker, "num_cpus": 1} if kind == "GPU" else {"num_cpus": gpus_per_worker}
        self._class = ray.remote(_Actor).options(**options)
        self._actors = [self._class.remote(start) for _ in range(self.workers)]

    def _connect(self, workers: int | None, address: str | None) -> None:
        """Reach the cluster, or start one on this machine."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {"num_cpus": workers or _cores(), "include_dashboard": False, "object_store_memory": 2**28}
            options["_node_ip_address"] = "127.0.0.1"  # not within reach of the network
        try:
            self._ray.init(address=address or "local", **options)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"The Ray cluster '{address or 'local'}' cannot be reached: {error}") from error

    def map(self, work: Work, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        ray, queue = self._ray, _Queue(jobs)
        # Reference -> the actor that answers it, and its job; None while it waits for its place in the cluster.
        flying: dict[Any, tuple[Any, tuple[Any, int] | None]] = {a.ready.remote(): (a, None) for a in self._actors}
        idle: list[Any] = []
        stillborn = 0

        while _hand_out(work, queue, idle, flying):
            (reference, *_), _ = ray.wait(list(flying), num_returns=1)
            actor, asked = flying.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                successor = self._replace(actor)
                flying[successor.ready.remote()] = (successor, None)
                if asked:
                    queue.give_back(*asked, error)
                elif (stillborn := stillborn + 1) > RETRIES * self.workers:
                    raise ExecutorError(f"Ray's workers die before their first job: {error}") from error
            except ray.exceptions.RayTaskError as error:
                idle.append(actor)
                assert asked
                queue.give_back(*asked, error.cause)
            else:
                idle.append(actor)
                if asked:
                    yield asked[0], result

    def _replace(self, dead: Any) -> Any:
        """A new actor in the place of one that died."""
        self._actors.remove(dead)
        self._actors.append(self._class.remote(self._start))
        return self._actors[-1]

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


def _hand_out(
    work: Work, queue: _Queue, idle: list[Any], flying: dict[Any, tuple[Any, tuple[Any, int] | None]]
) -> bool:
    """Give jobs to the idle actors; returns whether there is something to wait for."""
    while idle and (taken := queue.take()) is not None:
        actor = idle.pop()
        flying[actor.do.remote(work, taken[0])] = (actor, taken)
    return not idle or any(taken for _, taken in flying.values())
