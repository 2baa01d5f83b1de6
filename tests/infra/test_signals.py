"""SIGTERM ends a command as Ctrl-C does, through whatever handler SIGINT has."""

import signal

import pytest

from infra import cli
from infra.cli import main
from infra.cli.signals import Terminated, sigterm_interrupts


@pytest.fixture
def sigint():
    """A library's handler in SIGINT's place, which ends what runs in its own way."""
    seen = []

    def handler(number, frame):
        seen.append(number)
        raise KeyboardInterrupt("tidied up")

    before = signal.signal(signal.SIGINT, handler)
    yield seen
    signal.signal(signal.SIGINT, before)


def test_sigterm_goes_through_the_handler_of_sigint(sigint):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert sigint == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt, match="tidied up"), sigterm_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_heeded_where_sigint_is_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Terminated), sigterm_interrupts():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("stop", "code"), [(Terminated, 143), (KeyboardInterrupt, 130)])
def test_the_exit_code_says_which(stop, code, monkeypatch, capsys):
    def interrupted(verb, rest):
        raise stop

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert main(["train"]) == code
    assert capsys.readouterr().err == "lewm train: interrupted\n"
