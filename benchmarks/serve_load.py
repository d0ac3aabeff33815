"""Load test of tools/serve.py: requests per second, latencies, failures, and memory over time.

    python benchmarks/serve_load.py --resume checkpoint-best.pd --requests 10000 --json FILE
    python benchmarks/serve_load.py --resume classifier.onnx --connections 32 --serve --batch_wait_ms 0

Starts the service on a loopback port, and ends it. Both share this machine's cores, so that the service alone
is faster. Each answer is compared with the answer for the same picture without load. Needs aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aiohttp
from tqdm import tqdm

from benchmarks import sidebyside
from util.system.atomic_file import atomic_write

PICTURES = [
    "data/photos/astronaut.jpg",
    "data/photos/chelsea.jpg",
    "data/photos/coffee.jpg",
    "data/photos/rocket.jpg",
]
POINTS = 10  # readings of the memory after the start
TOLERANCE = 1e-4  # of a probability, because the batch size changes roundings


def get_args_parser() -> argparse.ArgumentParser:
    """Define the flags of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--resume", required=True, metavar="FILE", help="model file, as for tools/serve.py")
    parser.add_argument(
        "--img_path",
        nargs="+",
        default=[str(ROOT / path) for path in PICTURES],
        metavar="PATH",
        help="pictures to send in turns, one per request",
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=16, help="number of simultaneous requests")
    parser.add_argument("--seconds", type=float, default=300.0, help="time limit for all requests")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    parser.add_argument(
        "--serve",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="FLAG",
        help="flags for tools/serve.py; must come last",
    )
    return parser


@contextlib.contextmanager
def started(resume: str, flags: Sequence[str]) -> Iterator[str]:
    """Run a service for the context; yields its address. Raises ValueError if it fails."""
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), "--resume", resume, "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=sidebyside.ENVIRONMENT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.match(r"http://\S+", line)
        if not address:
            raise ValueError(f"tools/serve.py did not start; exit code {process.wait(60)}")
        yield address[0]
    finally:
        process.terminate()
        code = process.wait(60)
        process.stdout.close()
    if code != 0:
        raise ValueError(f"tools/serve.py ended with exit code {code}")


class Load:
    """Client that asks a service for the classes of pictures in turns.

    Attributes:
        seconds: latency of each request.
        errors: {problem: number of requests}.
        resident_mb: [(finished requests, memory of the service in MB), ...].
    """

    def __init__(self, address: str, pictures: Sequence[tuple[str, bytes]]) -> None:
        """Keep the address and the pictures, [(name, content), ...]."""
        self.address, self.pictures = address, pictures
        self.seconds: list[float] = []
        self.errors: dict[str, int] = {}
        self.resident_mb: list[tuple[int, float]] = []

    async def run(self, requests: int, connections: int, most_seconds: float) -> None:
        """Send all requests. Raises ValueError if they take longer than `most_seconds`."""
        connector, timeout = aiohttp.TCPConnector(limit=connections), aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self.session:
            self.health = await self._json("health")
            self.expected = [(await self._predict(data))["results"] for _, data in self.pictures]
            self.resident_mb.append((0, await self._metric("process_resident_memory_bytes") / 2**20))
            before = [await self._metric(f"mae_batch_images_{what}") for what in ("sum", "count")]
            self.numbers, self.requests = itertools.count(), requests
            self.bar = tqdm(total=requests, disable=not sys.stderr.isatty(), leave=False)
            begun = time.perf_counter()
            try:
                await asyncio.wait_for(
                    asyncio.gather(*(self._ask() for _ in range(connections))), most_seconds
                )
            except asyncio.TimeoutError as error:
                raise ValueError(
                    f"--seconds {most_seconds:g}: only {len(self.seconds)} of {requests} requests answered; "
                    "give fewer --requests"
                ) from error
            finally:
                self.bar.close()
            self.elapsed = time.perf_counter() - begun
            images, batches = [
                await self._metric(f"mae_batch_images_{what}") - start
                for what, start in zip(("sum", "count"), before, strict=True)
            ]
            self.mean_batch = images / max(batches, 1)

    async def _ask(self) -> None:
        """Send one request after the other over one connection."""
        while (number := next(self.numbers)) < self.requests:
            place = number % len(self.pictures)
            begun = time.perf_counter()
            try:
                answer = await self._predict(self.pictures[place][1])
                problem = (
                    ""
                    if same(answer["results"], self.expected[place])
                    else "another answer than without load"
                )
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                problem = f"{type(error).__name__} {getattr(error, 'status', '')}".strip()
            self.seconds.append(time.perf_counter() - begun)
            if problem:
                self.errors[problem] = self.errors.get(problem, 0) + 1
            self.bar.update()
            done = len(self.seconds)
            if done * POINTS // self.requests > (done - 1) * POINTS // self.requests:
                self.resident_mb.append((done, await self._metric("process_resident_memory_bytes") / 2**20))

    async def _predict(self, data: bytes) -> dict[str, Any]:
        async with self.session.post(
            f"{self.address}predict",
            data=data,
            raise_for_status=True,
            headers={"Content-Type": "application/octet-stream"},
        ) as answer:
            return await answer.json()

    async def _json(self, path: str) -> dict[str, Any]:
        async with self.session.get(self.address + path, raise_for_status=True) as answer:
            return await answer.json()

    async def _metric(self, name: str) -> float:
        async with self.session.get(f"{self.address}metrics", raise_for_status=True) as answer:
            found = re.search(rf"^{name} (\S+)$", await answer.text(), flags=re.MULTILINE)
        return float(found[1]) if found else float("nan")  # memory is reported on Linux only


def same(results: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> bool:
    """Compare the probabilities of two answers; equally likely classes may change places."""
    found, wanted = (
        [[cls["probability"] for cls in result["classes"]] for result in answer]
        for answer in (results, expected)
    )
    return len(found) == len(wanted) and all(
        abs(one - other) < TOLERANCE
        for ours, theirs in zip(found, wanted, strict=True)
        for one, other in zip(ours, theirs, strict=False)
    )


def main(args: argparse.Namespace) -> int:
    """Run the load test; returns 1 if a request failed."""
    for flag in ("requests", "connections"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    pictures = [(path, Path(path).read_bytes()) for path in args.img_path]
    with started(args.resume, args.serve) as address:
        load = Load(address, pictures)
        asyncio.run(load.run(args.requests, args.connections, args.seconds))
    percentiles = (
        statistics.quantiles(load.seconds, n=100, method="inclusive")
        if len(load.seconds) > 1
        else load.seconds * 99
    )
    found = {
        "requests_per_s": args.requests / load.elapsed,
        "p50_ms": 1e3 * percentiles[49],
        "p99_ms": 1e3 * percentiles[98],
        "slowest_ms": 1e3 * max(load.seconds),
        "errors": sum(load.errors.values()),
        "mean_batch": load.mean_batch,
    }
    print(
        f"{args.requests} requests by {args.connections} connections: "
        + ", ".join(f"{value:.4g} {name}" for name, value in found.items())
    )
    print("resident memory in MB: " + ", ".join(f"{done}: {mb:.0f}" for done, mb in load.resident_mb))
    for problem, count in load.errors.items():
        print(f"{count} x {problem}")
    if args.json:
        record = {
            "benchmark": Path(__file__).stem,
            "revision": sidebyside.revision(),
            "machine": sidebyside.machine(),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "settings": {
                "resume": Path(args.resume).name,
                "pictures": [Path(path).name for path, _ in pictures],
                "requests": args.requests,
                "connections": args.connections,
                "serve": args.serve,
            },
            "about": {name: load.health.get(name) for name in ("model", "classes", "engine", "versions")},
            "found": found,
            "problems": load.errors,
            "resident_mb": load.resident_mb,
        }
        with atomic_write(args.json, "w") as f:
            json.dump(record, f, indent=2)
            f.write("\n")
        print(f"wrote {args.json}")
    return 1 if load.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main(get_args_parser().parse_args()))
    except (ValueError, OSError) as error:
        print(f"serve_load.py: error: {error}", file=sys.stderr)
        sys.exit(2)
