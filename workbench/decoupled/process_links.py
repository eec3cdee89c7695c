"""Messages between processes over ``torch.distributed``: an inbox that listens and an outbox that speaks, in threads of their own.

A call of gloo to a process that was killed may never return, so a module itself never makes one: it waits for its threads, and
looks meanwhile whether the run is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from workbench.decoupled.buffer import ReplayBuffer
from workbench.decoupled.channel import Channel
from workbench.decoupled.messages import Message, size
from workbench.decoupled.parcels import host, nbytes, on_host

POLL_S = 0.02
"""How often a process that waits looks whether the run is over."""
HEADER_BYTES = 40
"""Lengths of the four parts of a message and the number of its codebook."""


def kernel_bytes() -> tuple[int, int] | None:
    """Bytes sent and received over the TCP connections of this process, as the kernel counts them; ``None`` where it does not say.

    More than messages: the frames of the transport are in it, and what processes say to meet.
    """
    if not sys.platform.startswith("linux"):
        return None
    sent = received = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since, or no socket
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(number))) as own:
                    # struct tcp_info of linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received
                    acked, got = struct.unpack_from("QQ", own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136), 120)
                    sent, received = sent + acked, received + got
    return sent, received


class Stopwatch:
    """Seconds by phase, all of the time in one phase or another: ``wall_s``, and ``cpu_s`` in which this thread had a processor."""

    def __init__(self, phase: str) -> None:
        self.phase, self.wall_s, self.cpu_s = phase, Counter(), Counter()
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def turn_to(self, phase: str) -> None:
        """End the phase that is, and begin another."""
        wall, cpu = time.perf_counter(), time.thread_time()
        self.wall_s[self.phase] += wall - self._wall
        self.cpu_s[self.phase] += cpu - self._cpu
        self.phase, self._wall, self._cpu = phase, wall, cpu


class Gone(Exception):
    """A neighbour does not answer any more."""


class Inbox:
    """What the module before has sent: a replay buffer, or in lock step one message after the other."""

    def __init__(self, channel: Channel, buffer: ReplayBuffer | None, device: torch.device) -> None:
        self.channel, self.buffer, self.device = channel, buffer, device
        self.waiting: list[Message] = []
        self.changed = threading.Condition()
        self.ended = False
        self.bytes = 0

    def listen(self, source: int) -> None:
        """Receive until the sender ends; runs in a thread of its own."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread, too
        with contextlib.suppress(RuntimeError):  # the sender is gone: the run is about to be ended
            while (message := self._next(source)) is not None:
                with self.changed:
                    if self.buffer is None:
                        # one message waits while another is being worked on, as on the simulated line
                        self.changed.wait_for(lambda: not self.waiting)
                        self.waiting.append(message)
                        self.channel.arrive(message)
                    else:
                        self.buffer.write(message)
                        self.channel.arrive(message, [held[2] for held in self.buffer.items])
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def _next(self, source: int) -> Message | None:
        header = torch.empty(5, dtype=torch.int64)
        dist.recv(header, source)
        size, head, labels, book, version = header.tolist()
        if size < 0:
            return None
        # a GPU copies at full speed from pinned memory alone
        body = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        small = torch.empty(head + labels + book, dtype=torch.uint8)
        dist.recv(small, source)
        if size:
            dist.recv(body, source)
        self.bytes += HEADER_BYTES + small.numel() + size
        parts = memoryview(small.numpy())  # parts of it are no copies, and hold it
        payload = (bytes(parts[:head]), body) if head else memoryview(body.numpy())
        return payload, parts[head:head + labels], version, parts[head + labels:]

    def take(self, stop: Any, clock: Stopwatch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What to work on next, when it is there; ``None`` when the run is over or nothing can come any more."""
        with self.changed:
            while not stop.value:
                message = (self.waiting.pop() if self.waiting else None) if self.buffer is None else self.buffer.read()
                if message is not None:
                    self.changed.notify_all()
                    clock.turn_to("decode")
                    # under the lock: a new codebook may push out the one it needs
                    return self.channel.receive(message, self.device, last=self.buffer is None)
                if self.ended:
                    return None
                self.changed.wait(POLL_S)
        return None


class Outbox:
    """Sends to the module behind, from a thread of its own; one message is under way while the module works on."""

    def __init__(self, target: int, stop: Any) -> None:
        self.target, self.stop, self.bytes = target, stop, 0
        self.changed = threading.Condition()
        self.parts: tuple[torch.Tensor, ...] | None = None
        self.failed = False

    def speak(self) -> None:
        """Send what there is; runs in a thread, as a send to a process that was killed may never return."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.parts is not None)
            try:
                for part in self.parts:
                    if part.numel():
                        dist.send(part, self.target)
            except RuntimeError:
                self.failed = True
            with self.changed:
                self.parts = None
                self.changed.notify_all()

    def send(self, message: Message) -> None:
        """Hand a message over to the link, once this has taken the one before."""
        payload, labels, version, book = message
        head, body = payload if isinstance(payload, tuple) else (b"", torch.from_numpy(np.require(host(payload)[0], None, "W")))
        small = torch.from_numpy(np.concatenate([np.frombuffer(head, np.uint8), *host(labels), *host(book)]))
        # the body is sent from where it lies, as nobody changes it
        self._hand_over(torch.tensor([body.numel(), len(head), nbytes(labels), len(book), version]), small, on_host(body))
        self.bytes += HEADER_BYTES + size(message)

    def end(self) -> None:
        """Say that nothing more comes, and wait until all is sent, or the run is stopped."""
        with contextlib.suppress(Gone):
            self._hand_over(torch.full((5,), -1))
            self._settle()

    def _hand_over(self, *parts: torch.Tensor) -> None:
        self._settle()
        with self.changed:
            self.parts = parts
            self.changed.notify_all()

    def _settle(self) -> None:
        with self.changed:
            while self.parts is not None and not self.failed and not self.stop.value:
                self.changed.wait(POLL_S)
        if self.failed or self.parts is not None:
            raise Gone
