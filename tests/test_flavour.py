"""The flavour says how an item pointer is divided, and refuses what no pointer can be."""

from __future__ import annotations

from typing import Any

import pytest

from xdpspead import _protocol
from xdpspead._flavour import Flavour


def test_default_flavour_is_spead_64_40() -> None:
    flavour = Flavour()
    assert (flavour.version, flavour.item_pointer_bits, flavour.heap_address_bits) == (4, 64, 40)
    assert flavour.bug_compat == 0


@pytest.mark.parametrize("bits", range(8, 64, 8))
def test_every_whole_byte_address_width_is_supported(bits: int) -> None:
    assert Flavour(4, 64, bits).heap_address_bits == bits


def test_arguments_may_be_given_by_name() -> None:
    flavour = Flavour(version=4, item_pointer_bits=64, heap_address_bits=48, bug_compat=7)
    assert flavour == Flavour(4, 64, 48, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 64, 48), "Version"),
        ((4, 32, 24), "item_pointer_bits"),
        ((4, 64, 0), "out of range"),
        ((4, 64, -8), "out of range"),
        ((4, 64, 64), "out of range"),
        ((4, 64, 47), "multiple of 8"),
    ],
)
def test_unsupported_width_is_a_value_error(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Flavour(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (4,),
        (4, 64),
        (4.0, 64, 48),
        ("4", 64, 48),
        (4, 64, 48, -1),
        (4, 64, 48, 2**40),
        (2**40, 64, 48),
    ],
)
def test_wrong_type_or_number_of_arguments_is_a_type_error(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Flavour(*arguments)


@pytest.mark.parametrize("arguments", [{"bug_compat": 1}, {"heap_address_bits": 40}])
def test_some_of_the_widths_alone_are_a_type_error(arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Flavour(**arguments)


def test_flavours_are_equal_by_value() -> None:
    assert Flavour(4, 64, 48, 1) == Flavour(4, 64, 48, 1)
    assert Flavour(4, 64, 48) != Flavour(4, 64, 40)
    assert Flavour(4, 64, 48) != Flavour(4, 64, 48, 1)
    assert Flavour() != (4, 64, 40, 0)


def test_flavour_is_not_hashable() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Flavour())


@pytest.mark.parametrize(
    "name", ["version", "item_pointer_bits", "heap_address_bits", "bug_compat", "other"]
)
def test_flavour_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Flavour(), name, 4)


def test_repr_names_the_widths() -> None:
    assert repr(Flavour(4, 64, 48, 2)) == "Flavour(4, 64, 48, bug_compat=2)"


def test_constants_are_those_of_the_peer() -> None:
    peer = pytest.importorskip("spead2")
    public = {
        name: getattr(peer, name) for name in dir(peer) if name[0].isalpha() and name.isupper()
    }
    assert public
    assert {name: getattr(_protocol, name, None) for name in public} == public


@pytest.mark.parametrize("bug_compat", [0, 1, 7, 8, 2**32 - 1])
@pytest.mark.parametrize("bits", [-8, 0, 7, 8, 40, 48, 56, 63, 64])
def test_flavour_agrees_with_the_peer(bits: int, bug_compat: int) -> None:
    peer = pytest.importorskip("spead2")

    def describe(flavour: Any) -> tuple[int, ...] | type[Exception]:
        try:
            made = flavour(4, 64, bits, bug_compat)
        except (TypeError, ValueError) as error:
            return type(error)
        return made.version, made.item_pointer_bits, made.heap_address_bits, made.bug_compat

    assert describe(Flavour) == describe(peer.Flavour)
