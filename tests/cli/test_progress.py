from __future__ import annotations

import io
from types import SimpleNamespace

from cryorbit.cli.progress import MetricsFile, Teller, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def record(step, stage="search", steps=10):
    return SimpleNamespace(
        stage=stage, step=step, steps=steps, fraction=step / steps, metrics={"log_likelihood": 1.5 * step}
    )


def test_plain_lines_are_few():
    """Without a terminal: the first record of a stage, then one per interval, and the last."""
    stream = io.StringIO()
    with Teller(stream=stream, interval_s=3600) as teller:
        for step in range(1, 11):
            teller.tell(record(step))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "search 1/10" in lines[0]
    assert "log_likelihood 15" in lines[-1]


def test_a_terminal_gets_a_bar_with_stage_and_time_left():
    """On a terminal the stage and the time left stand beside the bar."""
    stream = Terminal()
    with Teller(stream=stream) as teller:
        teller.tell(record(2, stage="refine"))
        teller.tell(record(4, stage="refine"))
    assert "refine 4/10" in stream.getvalue()
    assert "left" in stream.getvalue()


def test_a_cut_last_line_is_left_out(tmp_path):
    """A metrics file whose last line was cut by a crash still reads."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append(record(1), seconds=1.0)
    path.write_text(path.read_text() + '{"stage": "sea')
    assert [row["step"] for row in read_metrics(path)] == [1]
    assert MetricsFile(path, keep_rows=1).rows == 1
    assert path.read_text().count("\n") == 1
