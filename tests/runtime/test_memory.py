"""A run that the machine cannot hold is refused before it takes anything."""

import pytest
from click.testing import CliRunner

from lamina.cli import main
from lamina.runtime import memory


def test_what_fits_and_what_does_not(monkeypatch):
    """The message has both numbers."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    memory.require_memory(1000, "this")
    with pytest.raises(MemoryError, match="this takes 1,001 bytes; this machine has 1,000 to give"):
        memory.require_memory(1001, "this")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.require_memory(1 << 60, "a system that does not say")


def test_a_picture_of_a_billion_pixels(monkeypatch):
    """It once filled the machine until the system ended something else."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 << 30)
    call = ["bench", "resnet#ResNet18", "--input", "image=1x3x31616x31616", "--steps", "1"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 1
    assert "out of memory: the run's arena with its inputs takes" in done.output
    assert "this machine has 8,589,934,592 to give" in done.output
