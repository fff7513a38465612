from rich.console import Console

from mask2former_mcp.demo.progress import Shown


def test_where_there_is_no_terminal_each_phase_and_each_tenth_is_a_line() -> None:
    console = Console(record=True, width=60)
    assert not console.is_terminal
    with Shown(console, "train") as shown:
        shown.update(0.0, "running (waiting for a CPU slot behind train-1)")
        shown.update(0.0, "running (checking images (10%))")
        shown.update(0.01, "running (checking images (90%))")
        shown.update(0.02, "running (epoch 1 of 3, 2 min left)")
        shown.update(0.03, "running (epoch 1 of 3, best mIoU 0.500, 1 min left)")
        shown.update(0.11, "running (epoch 1 of 3, 1 min left)")
        shown.update(1.0, "succeeded")
    assert console.export_text().splitlines() == [
        "train 0%: running (waiting for a CPU slot behind train-1)",
        "train 0%: running (checking images (10%))",
        "train 2%: running (epoch 1 of 3, 2 min left)",
        "train 11%: running (epoch 1 of 3, 1 min left)",
        "train 100%: succeeded",
    ]


def test_a_terminal_has_a_bar_and_no_lines() -> None:
    console = Console(record=True, width=120, force_terminal=True)
    with Shown(console, "train") as shown:
        shown.update(0.5, "running (epoch 2 of 3)")
    assert "50%:" not in console.export_text()
