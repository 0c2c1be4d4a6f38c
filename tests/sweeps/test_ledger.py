"""The ledger: only appended to, and all states follow from it."""

from joytag.sweeps.ledger import Ledger


def test_states_follow_from_the_rows(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append("called")
    assert ledger.state("a") == "pending"
    ledger.append("started", "a")
    assert ledger.state("a") == "running"
    ledger.append("interrupted", "a", reason="")
    assert ledger.state("a") == "pending"
    assert not ledger.is_over("a")
    ledger.append("done", "a", value=0.5)
    assert (ledger.state("a"), ledger.last["a"]["value"], ledger.is_over("a")) == ("done", 0.5, True)
    ledger.append("diverged", "b")
    assert (ledger.state("b"), ledger.is_over("b")) == ("diverged", True)
    assert (ledger.state("c"), ledger.is_over("c")) == ("pending", False)
    again = Ledger(tmp_path)
    assert again.rows == ledger.rows
    assert again.last == ledger.last
    again.append("lost", "a")
    assert (again.state("a"), again.is_over("a")) == ("pending", False)


def test_failures_count_anew_at_each_call(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append("called")
    for attempt in range(3):
        assert not ledger.is_over("a")
        ledger.append("failed", "a", reason=str(attempt))
    assert (ledger.state("a"), ledger.failures["a"]) == ("failed", ["0", "1", "2"])
    ledger.append("called")
    assert (ledger.state("a"), ledger.failures["a"]) == ("pending", [])


def test_an_incomplete_line_of_a_killed_process_is_skipped(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append("called")
    with ledger.path.open("a") as file:
        file.write('{"event": "done", "tri')
    again = Ledger(tmp_path)
    again.append("started", "a")
    assert [row["event"] for row in Ledger(tmp_path).rows] == ["called", "started"]
