"""Rows of the ledger: peers, parts, lost messages and broadcasts, against a plain list of messages."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tracking.codecs import Dense, Levels
from tracking.codecs.lattice import Lattice
from tracking.errors import UserError
from tracking.ledger import Ledger
from tracking.metrics import METRICS

DIRECTIONS = ("up", "down", "peer")
PARTIES = ("server", "c1", "c2")


class Opaque:
    """A codec of no tensor: neither a dense size nor an entropy bound is known."""

    name = "opaque"

    def encode(self, value):
        return value

    def decode(self, payload):
        return payload


class LedgerAgainstAList(RuleBasedStateMachine):
    """Every message is also kept in a plain list; all totals must follow from it, over saving and loading."""

    def __init__(self):
        super().__init__()
        self.ledger, self.sent = Ledger(), []

    def note(self, direction, party, codec, part, kind, size, multicast, dense):
        self.sent.append(((direction, party, codec, part, kind), size, multicast, dense))

    @rule(
        n=st.integers(0, 40),
        codec=st.sampled_from([Dense(), Dense("fp16"), Levels(), Lattice(5, 0.5, check=True)]),
        direction=st.sampled_from(DIRECTIONS),
        party=st.sampled_from(PARTIES),
        part=st.sampled_from(["payload", "codebook", "seed"]),
        kind=st.sampled_from(["sent", "repeated"]),
    )
    def send(self, n, codec, direction, party, part, kind):
        x = torch.arange(float(n))
        reference = x + 3 if codec.name == "lattice" else None
        assert torch.equal(self.ledger.send(x, codec, direction, party, reference, part=part, kind=kind), x)
        size = len(codec.encode(x))
        self.note(direction, party, codec.name, part, kind, size, size, 4 * n)

    @rule(size=st.integers(0, 40), direction=st.sampled_from(DIRECTIONS), party=st.sampled_from(PARTIES))
    def opaque(self, size, direction, party):
        assert self.ledger.send(bytes(size), Opaque(), direction, party) == bytes(size)
        self.note(direction, party, "opaque", "payload", "sent", size, size, None)

    @rule(
        size=st.integers(0, 1000),
        kind=st.sampled_from(["lost", "discarded"]),
        direction=st.sampled_from(DIRECTIONS),
        dense=st.none() | st.integers(0, 9),
    )
    def bill(self, size, kind, direction, dense):
        self.ledger.bill(size, "dense_fp32", direction, "c1", kind=kind, dense_bytes=dense)
        self.note(direction, "c1", "dense_fp32", "payload", kind, size, size, dense)

    @rule(n=st.integers(0, 40), parties=st.lists(st.sampled_from(PARTIES), unique=True))
    def broadcast(self, n, parties):
        x = torch.ones(n)
        got = self.ledger.broadcast(x, Levels(), "down", parties)
        assert sorted(got) == sorted(parties)
        assert all(torch.equal(v, x) for v in got.values())
        size = len(Levels().encode(x))
        for i, party in enumerate(parties):
            self.note("down", party, "levels", "payload", "sent", size, 0 if i else size, 4 * n)

    @rule()
    def save_and_load(self):
        state = json.loads(json.dumps(self.ledger.state_dict()))
        self.ledger = Ledger()
        self.ledger.load_state_dict(state)

    @invariant()
    def totals_follow_from_the_list(self):
        rows: dict = {}
        for key, size, multicast, dense in self.sent:
            row = rows.setdefault(key, [0, 0, 0, 0])
            for i, more in enumerate((size, 1, multicast, dense)):
                row[i] = None if row[i] is None or more is None else row[i] + more
        names = ("direction", "party", "codec", "part", "kind")
        columns = ("bytes", "messages", "multicast_bytes", "dense_bytes")
        table = {tuple(r[name] for name in names): [r.get(column) for column in columns] for r in self.ledger.table()}
        assert table == rows
        total = {d: sum(s for key, s, _, _ in self.sent if key[0] == d) for d in DIRECTIONS}
        metrics = self.ledger.metrics()
        if not self.sent:
            assert metrics == {}
            return
        assert metrics.pop("comm/messages") == len(self.sent)
        peers = any(key[0] == "peer" for key, *_ in self.sent)
        assert metrics == {f"comm/{d}_bytes": total[d] for d in DIRECTIONS if d != "peer" or peers}
        assert set(metrics) <= set(METRICS)
        summary = {r["direction"]: r for r in self.ledger.summary()}
        assert summary["all"]["bytes"] == sum(total.values())
        assert summary["all"]["multicast_bytes"] == sum(m for _, _, m, _ in self.sent)
        assert summary["all"]["messages"] == len(self.sent)
        known = all(dense is not None for *_, dense in self.sent)
        assert ("dense_bytes" in summary["all"]) == known
        if known and summary["all"]["bytes"]:
            assert summary["all"]["ratio"] == sum(dense for *_, dense in self.sent) / sum(total.values())


LedgerAgainstAList.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=15)
test_the_ledger_is_the_sum_of_its_messages = LedgerAgainstAList.TestCase


def test_rows_saved_before_there_were_more_columns_still_load():
    ledger = Ledger()
    ledger.load_state_dict({"rows": [["up", "server", "dense_fp32", 120, 3], ["down", "c1", "levels", 7, 1]]})
    assert ledger.metrics() == {"comm/up_bytes": 120, "comm/down_bytes": 7, "comm/messages": 4}
    ledger.send(torch.ones(2), Dense(), "up")
    row = next(r for r in ledger.table() if r["direction"] == "up")
    assert row == {
        "direction": "up",
        "party": "server",
        "codec": "dense_fp32",
        "part": "payload",
        "kind": "sent",
        "bytes": 133,
        "messages": 4,
        "multicast_bytes": 133,
    }  # how large the old messages were, uncompressed, nobody knows
    again = Ledger()
    again.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert again.table() == ledger.table()


def test_a_broadcast_is_unicast_in_the_bill_and_once_in_its_own_column():
    ledger, x = Ledger(), torch.arange(10.0)
    got = ledger.broadcast(x, Dense(), "down", ["a", "b", "c"])
    assert ledger.metrics() == {"comm/up_bytes": 0, "comm/down_bytes": 3 * 45, "comm/messages": 3}
    assert [r["multicast_bytes"] for r in ledger.table()] == [45, 0, 0]
    assert {r["direction"]: r["ratio"] for r in ledger.summary()} == {"down": 40 / 45, "all": 40 / 45}
    got["a"].zero_()
    assert torch.equal(got["b"], x), "receivers share no memory"
    with pytest.raises(UserError, match="names a party twice"):
        ledger.broadcast(x, Dense(), "down", ["a", "a"])
    assert ledger.broadcast(x, Dense(), "down", []) == {}
    assert ledger.metrics()["comm/messages"] == 3


@pytest.mark.parametrize("codec", [Dense(), Dense("bf16"), Levels()], ids=lambda c: c.name)
@pytest.mark.parametrize("count", [1, 4])
def test_a_multicast_is_billed_like_a_broadcast_and_decoded_once(codec, count):
    class Counting:
        name, decoded = codec.name, 0
        encode, entropy_bytes = codec.encode, codec.entropy_bytes

        def decode(self, payload):
            self.decoded += 1
            return codec.decode(payload)

    x, parties, once = torch.tensor([1.0, 2.0, 2.0, 0.5]), [f"client {i}" for i in range(count)], Counting()
    many, one = Ledger(), Ledger()
    for _ in range(2):
        apart = many.broadcast(x, codec, "down", parties, part="codebook", entropy=True)
        together = one.multicast(x, once, "down", parties, part="codebook", entropy=True)
        assert all(torch.equal(together, got) for got in apart.values())
    assert one.table() == many.table()
    assert one.metrics() == many.metrics()
    assert one.summary() == many.summary()
    assert once.decoded == 2
    assert together.data_ptr() != x.data_ptr()


def test_a_multicast_refuses_what_a_broadcast_does_and_bills_nothing_then():
    ledger, x = Ledger(), torch.ones(3)
    for codec, parties, said in ((Dense(), ["a", "a"], "twice"), (Dense(), [], "a party at least"), (Lattice(), ["a"], "reference")):
        with pytest.raises(UserError, match=said):
            ledger.multicast(x, codec, "down", parties)
    with pytest.raises(UserError, match="direction"):
        ledger.multicast(x, Dense(), "sideways", ["a"])
    with pytest.raises(ValueError, match="different values"):
        ledger.multicast(torch.arange(300.0), Levels(), "down", ["a"])
    assert ledger.rows == {}


def test_each_receiver_of_a_broadcast_decodes_with_its_own_reference():
    ledger, q, x = Ledger(), Lattice(6, 0.5), torch.arange(10.0)
    got = ledger.broadcast(x, q, "down", ["near", "far"], {"near": x + 2, "far": x + 32})
    assert torch.equal(got["near"], x)
    assert torch.equal(got["far"], x + 32), "a whole period of 2^6 sides away"
    for references in (None, {"near": x}):
        with pytest.raises(UserError, match=r"pass the reference of '(near|far)'"):
            ledger.broadcast(x, q, "down", ["near", "far"], references)
    with pytest.raises(UserError, match="takes no reference"):
        ledger.send(x, Dense(), "up", reference=x)
    assert ledger.metrics()["comm/messages"] == 2, "refused messages are not billed"


def test_the_entropy_bound_is_there_on_request_and_only_whole():
    x = torch.tensor([1.0, 1.0, -1.0, 1.0] * 100)
    ledger = Ledger()
    ledger.send(x, Levels(), "up", entropy=True)
    (row,) = ledger.table()
    assert row["entropy_bytes"] == pytest.approx(400 * (2 - 0.75 * math.log2(3)) / 8)
    assert row["entropy_bytes"] < row["bytes"]
    ledger.send(x, Levels(), "up")
    assert "entropy_bytes" not in ledger.table()[0], "one message without: the sum would not be that of the row"


def test_lost_and_discarded_uploads_are_in_the_bill():
    ledger, x = Ledger(), torch.ones(10)
    payload = Dense().encode(x)
    ledger.send(x, Dense(), "up", "c1")
    ledger.bill(len(payload), "dense_fp32", "up", "c1", kind="lost", dense_bytes=40)
    ledger.bill(len(payload), "dense_fp32", "up", "c1", kind="discarded")
    assert ledger.metrics()["comm/up_bytes"] == 135
    assert [(r["kind"], r.get("dense_bytes")) for r in ledger.table()] == [
        ("discarded", None),
        ("lost", 40),
        ("sent", 40),
    ]
    for size in (-1, 1.5, True):
        with pytest.raises(UserError, match="cannot be billed"):
            ledger.bill(size, "dense_fp32", "up")
    with pytest.raises(UserError, match=r"Unknown kind of message 'los'\. Did you mean 'lost'"):
        ledger.bill(1, "dense_fp32", "up", kind="los")
    with pytest.raises(UserError, match=r"Unknown part 'code'"):
        ledger.send(x, Dense(), "up", part="code")
    assert ledger.metrics()["comm/messages"] == 3
