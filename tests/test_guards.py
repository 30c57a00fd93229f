"""The test suite's own guards, without which a green run would mean less."""

import os
import socket

import pytest


def test_no_connection_leaves_this_machine():
    # 192.0.2.0/24 is set aside for documents (RFC 5737): no machine has it.
    with (
        socket.socket() as there,
        pytest.raises(Exception, match="without a network, not to"),
    ):
        there.settimeout(0.1)
        there.connect(("192.0.2.1", 80))


def test_no_name_is_looked_up():
    with pytest.raises(Exception, match=r"without a network, not to example\.invalid"):
        socket.create_connection(("example.invalid", 80), timeout=0.1)


def test_this_machine_may_be_reached():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as reached,
    ):
        assert reached.getpeername() == server.getsockname()


def test_the_hub_is_offline():
    from huggingface_hub import constants

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE


def test_a_wrong_shape_is_refused():
    """Whether the jaxtyping hook is on: mechvlm's types are checked while it runs."""
    from mechvlm.papers import cite

    with pytest.raises(Exception, match="cite"):
        cite(3)
