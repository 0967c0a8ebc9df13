"""Work on many jobs, in this process, in several, or on a Ray cluster; a free worker takes the next job.

    with open_executor(start, engine="local", workers=2) as executor:
        for job, result in executor.map(work, jobs): ...

`start(slot)` makes what a worker keeps between jobs (a loaded model, say), once per worker, when its first job comes;
`work(state, job)` does a job. A job whose worker died, or that failed, is given to another worker, up to `RETRIES`
times; a `LimelightError` ends the map at once, as the user has to act on it. Results come in the order in which they
are done, so written files must not depend on it.

A worker that does nothing for `LIMIT` seconds while it has a job is stopped, or waits for what does not come: it is
ended, with a `WorkerWarning`, and its job goes to another. What counts is its processor time; a job may take as long as
it needs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from ..errors import LimelightError, MissingDependency, SettingsError, WorkerWarning
from .numbers import MOST_IMAGES, check_finite, check_whole
from .progress import quiet
from .reading import first_line

if TYPE_CHECKING:
    import torch

ENGINES = ("local", "ray")
RETRIES = 2
LIMIT = 600.0
"""For how many seconds a worker may do nothing while it has a job."""
ROOM = 600.0
"""For how many seconds a cluster may have no room for any worker."""
SHARE = 0.03  # of a processor: less is nothing. Ray's own threads in a worker take about 0.01.
TICK = 1.0  # seconds between two looks at the workers
GRACE = 10.0  # seconds that processes have to leave by themselves
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
            ExecutorError: a job failed `RETRIES` times more than once, or the cluster has no room for a worker.
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
    check_whole(MOST_IMAGES, workers=workers)
    if address is not None and engine != "ray":
        raise SettingsError(f"The address '{address}' is Ray's; use it with engine ray.")
    executor: _Serial | _Processes | _Actors
    if engine == "ray":
        executor = _Actors(start, workers, address, gpus_per_worker)
    else:
        count = workers or _gpus() or _cores()
        executor = _Serial(start) if count == 1 else _Processes(start, count)
    try:
        yield executor
    finally:
        executor.close()


def in_this_process(model: str, engine: str, workers: int | None, **opening: Any) -> int:
    """The one worker of a model that is open: it cannot be sent to others.

    Args:
        model: what sentences call it.
        opening: options that count while a model is opened, by their names.

    Raises:
        SettingsError: one of these options is set, or other workers are asked for.
    """
    given = [name for name, value in opening.items() if value]
    if given:
        raise SettingsError(f"The {model} is open already; set {' and '.join(given)} where you open it.")
    if engine != "local" or (workers or 1) > 1:
        raise SettingsError(f"The open {model} cannot go to other workers; give its name, or workers=1.")
    return 1


def device_of(slot: int, device: str | None = None) -> str | None:
    """The device of the worker in a slot: where CUDA is asked for, or nothing is, the GPUs in turns."""
    import torch

    if device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{slot % torch.cuda.device_count()}"
    return device


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, sums depend in their last digits on the number of threads; workers are what makes use of the cores."""
    import torch

    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


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
            raise ExecutorError(f"The job {str(job)[:200]} failed {failures + 1} times: {first_line(error)}") from error
        self._again.append((job, failures + 1))


class _Watch:
    """Finds the workers that have done nothing for so many seconds."""

    def __init__(self, limit: float) -> None:
        self._limit, self._clock, self._looked = limit, 0.0, time.monotonic()
        self._since: dict[Any, tuple[float, float]] = {}  # worker -> when it last did something, and its seconds then

    def still(self, spent: Mapping[Any, float]) -> list[Any]:
        """Look at them, again and again.

        Args:
            spent: for each worker that should do something the seconds of processor time that it has had.
        """
        # Time in which this process slept, or was stopped with its workers, does not count.
        now = time.monotonic()
        self._clock += min(now - self._looked, 2 * TICK)
        self._looked = now

        before, self._since = self._since, {}
        for worker, seconds in spent.items():
            since, had = before.get(worker, (self._clock, seconds))
            if seconds - had > SHARE * self._limit:
                since, had = self._clock, seconds
            self._since[worker] = since, had
        return [worker for worker, (since, _) in self._since.items() if self._clock - since >= self._limit]


def _stopped(worker: str) -> TimeoutError:
    """Say that a worker is ended, and return why, for the case that its job fails for good."""
    why = f"did nothing for {LIMIT:.0f} seconds: it was stopped, or waited for something that did not come"
    warnings.warn(WorkerWarning(f"{worker} {why}. It is ended, and its job is done again."), stacklevel=2)
    return TimeoutError(f"its worker {why}")


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
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
        queue, flying, watch = _Queue(jobs), dict[Future[Any], tuple[Any, int]](), _Watch(LIMIT)
        while True:
            while len(flying) < self.workers and (taken := queue.take()) is not None:
                flying[self._submit(work, taken[0])] = taken
            if not flying:
                return

            done, _ = wait(flying, timeout=TICK, return_when=FIRST_COMPLETED)
            broken: BaseException | None = None
            for future in done:
                taken, error = flying.pop(future), future.exception()
                if error is None:
                    yield taken[0], future.result()
                else:
                    queue.give_back(*taken, error)
                    broken = error if isinstance(error, BrokenProcessPool) else broken

            broken = broken or self._find_stopped(watch, len(flying))
            if broken is not None:
                self._reopen(queue, flying, broken)

    def _find_stopped(self, watch: _Watch, busy: int) -> TimeoutError | None:
        """Return why the processes must be replaced, if fewer of them do something than have a job."""
        spent = {}
        for number in list(self._pool._processes):
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(number).cpu_times()
                spent[number] = times.user + times.system
        still = watch.still(spent)
        if not busy or len(spent) - len(still) >= busy:
            return None
        return _stopped(f"The worker process {', '.join(map(str, still))}")

    def _reopen(self, queue: _Queue, flying: dict[Future[Any], tuple[Any, int]], error: BaseException) -> None:
        """Start new processes: the pool ends with the first worker that dies, and it is unknown whose job that was."""
        for taken in flying.values():
            queue.give_back(*taken, error)
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
        """End the processes, also those that are stopped or still have a job."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + GRACE
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
            process.kill()
        for process in processes:
            process.join()


class _Actor(_Worker):
    """A Ray worker. It is in slot 0, as Ray shows it its own GPUs only."""

    def ready(self) -> int:
        """Its process: answered only once the cluster has room for it."""
        quiet()
        return os.getpid()

    def spent(self) -> float:
        """Seconds of processor time that its process has had; answered while it has a job."""
        return time.process_time()


class _Actors(Executor):
    """Actors of a Ray cluster."""

    def __init__(self, start: Start, workers: int | None, address: str | None, gpus_per_worker: float) -> None:
        # Or Ray knocks for a quarter of an hour at a cluster that is not there; once is 40 seconds.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
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
        self._place = {"num_gpus": gpus_per_worker, "num_cpus": 1} if kind == "GPU" else {"num_cpus": gpus_per_worker}
        self._class = ray.remote(**self._place, concurrency_groups={"watch": 1})(_Actor)
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
            where, why = address or "local", first_line(error)
            raise SettingsError(
                f"The Ray cluster '{where}' cannot be reached: {why}. Start it, or check the address."
            ) from error

    def map(self, work: Work, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        queue, watch = _Queue(jobs), _ActorWatch(self._ray)
        flying: _Flying = {a.ready.remote(): (a, None) for a in self._actors}
        idle: list[Any] = []
        stillborn = 0

        while _hand_out(work, queue, idle, flying):
            done, _ = self._ray.wait(list(flying), num_returns=1, timeout=TICK)
            if not done:
                self._end_stopped(flying, watch)
                continue

            actor, asked = flying.pop(done[0])
            result, failure, lost = self._answer(done[0])
            if failure is None:
                idle.append(actor)
                if asked:
                    yield asked[0], result
                continue

            if asked:
                queue.give_back(*asked, watch.ended.pop(actor, failure))
            elif (stillborn := stillborn + 1) > RETRIES * self.workers:
                raise ExecutorError(f"Ray's workers fail before their first job: {first_line(failure)}") from failure
            if lost or not asked:
                actor = self._replace(actor)
                flying[actor.ready.remote()] = (actor, None)
            else:
                idle.append(actor)

    def _answer(self, reference: Any) -> tuple[Any, BaseException | None, bool]:
        """Return the result of a call, or why it failed, and whether the worker is lost."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference), None, False
        except errors.RayTaskError as error:
            return None, error.cause, False
        except errors.RayError as error:  # the worker, its node, or the result that lay on that node
            return None, error, True

    def _end_stopped(self, flying: _Flying, watch: _ActorWatch) -> None:
        """Kill the actors that do nothing, so that waiting for them ends.

        Raises:
            ExecutorError: there is none, as the cluster has no room for them.
        """
        busy = [actor for actor, asked in flying.values() if asked]
        if watch.without_room(busy):
            place = ", ".join(f"{name}={count:g}" for name, count in self._place.items())
            raise ExecutorError(
                f"The Ray cluster has had no room for a worker ({place}) for {ROOM:.0f} seconds. Start more nodes, "
                "wait until other work ends, or let a worker take less."
            )
        for actor in watch.still(busy):
            watch.ended[actor] = _stopped("A worker of the Ray cluster")
            self._ray.kill(actor)

    def _replace(self, lost: Any) -> Any:
        """A new actor in the place of one that is lost."""
        self._ray.kill(lost)
        self._actors.remove(lost)
        self._actors.append(self._class.remote(self._start))
        return self._actors[-1]

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


_Flying = dict[Any, tuple[Any, tuple[Any, int] | None]]
"""Reference -> the actor that answers it, and its job; None while the actor waits for its place in the cluster."""


class _ActorWatch:
    """A watch over actors, whose processor seconds come by messages.

    Attributes:
        ended: why, for each actor that was ended because it did nothing.
    """

    def __init__(self, ray: Any) -> None:
        self._ray, self._watch, self._room = ray, _Watch(LIMIT), _Watch(ROOM)
        self.ended: dict[Any, BaseException] = {}
        self._asked: dict[Any, Any] = {}  # actor -> the reference that it has not answered yet
        self._spent: dict[Any, float] = {}

    def without_room(self, busy: Sequence[Any]) -> bool:
        """Whether for so long no actor has had a job, because none found a place."""
        return bool(self._room.still({} if busy else {"any": 0.0}))

    def still(self, busy: Sequence[Any]) -> list[Any]:
        """The actors that have a job and do nothing."""
        return self._watch.still({actor: self._seconds(actor) for actor in busy if actor not in self.ended})

    def _seconds(self, actor: Any) -> float:
        """What an actor answered last."""
        if actor not in self._asked:
            self._asked[actor] = actor.spent.options(concurrency_group="watch").remote()
        if self._ray.wait([self._asked[actor]], timeout=0)[0]:
            with suppress(self._ray.exceptions.RayError):  # that it is lost shows where its job is waited for
                self._spent[actor] = self._ray.get(self._asked.pop(actor))
        return self._spent.get(actor, 0.0)


def _hand_out(work: Work, queue: _Queue, idle: list[Any], flying: _Flying) -> bool:
    """Give jobs to the idle actors; returns whether there is something to wait for."""
    while idle and (taken := queue.take()) is not None:
        actor = idle.pop()
        flying[actor.do.remote(work, taken[0])] = (actor, taken)
    return not idle or any(taken for _, taken in flying.values())
