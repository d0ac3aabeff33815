"""util/system/commands.py, with scripts of a few lines."""

import signal

import pytest

from util.system.commands import ROOT, run


@pytest.fixture
def script(tmp_path):
    """A function that writes a script and gives its path, which has a space in it."""

    def write(source):
        path = tmp_path / "a script.py"
        path.write_text(source, encoding="utf-8")
        return str(path)

    return write


def test_flags_reach_the_script_and_are_shown(script, capfd):
    echo = script("import os, sys; print(sys.argv[1:], os.getcwd())")
    run(echo, "first", 2, img_path=["a b.jpg", "c"], epochs=3, aa="", eval=True, dry_run=False)
    shown, said = capfd.readouterr().out.splitlines()
    assert shown == f"$ python '{echo}' first 2 --img_path 'a b.jpg' c --epochs 3 --aa '' --eval"
    assert (
        said
        == f"{['first', '2', '--img_path', 'a b.jpg', 'c', '--epochs', '3', '--aa', '', '--eval']} {ROOT}"
    )


def test_both_streams_are_shown_without_times_of_day(script, capfd):
    run(
        script(
            "import sys; print('[12:34:56.789012] loss 1 [12:34:56.7]'); sys.stdout.flush();"
            "print('警告', sys.stderr.isatty(), file=sys.stderr)"
        )
    )
    assert capfd.readouterr().out.splitlines()[1:] == ["loss 1 [12:34:56.7]", "警告 False"]


def test_signals_to_the_processes_of_a_notebook_do_not_reach_it(script, capfd):
    run(script("import os; print(os.getpgid(0) == os.getpid())"))
    assert capfd.readouterr().out.splitlines()[1:] == ["True"]


def test_lines_come_as_they_are_printed(script, monkeypatch):
    """A script that waits for an answer to its first line gets it."""
    answer = script(
        "import os, time\nprint('ready', flush=True)\n"
        "while not os.path.exists(__file__ + '.go'): time.sleep(0.01)"
    )
    monkeypatch.setattr(
        "builtins.print", lambda text, **options: "ready" in text and open(answer + ".go", "w").close()
    )
    run(answer)


def test_a_failing_command_is_an_error(script, capfd):
    with pytest.raises(RuntimeError, match=r"a script\.py: exit code 2"):
        run(script("import sys; print('why', file=sys.stderr); sys.exit(2)"))
    assert "why" in capfd.readouterr().out


TRAINING = """import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print("Epoch: [1]", flush=True)
for _ in range(500):
    time.sleep(0.01)
    if asked:
        print("Epoch: [1] saved", flush=True)
        time.sleep(0.1)
        sys.exit({code} if len(asked) == 1 else 99)
"""


def test_a_run_that_is_stopped_at_a_line_gets_one_ctrl_c(script, capfd):
    run(script(TRAINING.format(code=75)), stop_at="Epoch: [1]")
    assert "saved" in capfd.readouterr().out


def test_a_run_that_was_to_be_stopped_and_was_not_is_an_error(script):
    with pytest.raises(RuntimeError, match=r"exit code 0.*'Epoch: \[7\]'"):
        run(script("print('done')"), stop_at="Epoch: [7]")
    with pytest.raises(RuntimeError, match="exit code 130"):
        run(script(TRAINING.format(code=130)), stop_at="Epoch: [1]")


def test_an_interrupt_lets_the_command_save_itself(script, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt, match="exit code 75"):
            run(script(TRAINING.format(code=75)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "saved" in capfd.readouterr().out
