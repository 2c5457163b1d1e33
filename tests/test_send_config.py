"""The configuration of a stream that sends takes what makes sense, and nothing else."""

from __future__ import annotations

import enum
import importlib
import math
from typing import Any

import numpy as np
import pytest
from target import PACKAGE

send: Any = importlib.import_module(PACKAGE + ".send")

DEFAULTS = {
    "max_packet_size": 1472,
    "rate": 0.0,
    "burst_size": 65536,
    "max_heaps": 4,
    "burst_rate_ratio": 1.05,
    "rate_method": send.RateMethod.AUTO,
}


def configured(how: str, name: str, value: Any) -> Any:
    """Return what an option reads back as, once given as a keyword or set as an attribute."""
    if how == "keyword":
        config = send.StreamConfig(**{name: value})
    else:
        config = send.StreamConfig()
        setattr(config, name, value)
    return getattr(config, name)


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_is_the_documented_one(name: str) -> None:
    assert getattr(send.StreamConfig(), name) == DEFAULTS[name]


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "rate"])
def test_default_is_an_attribute_of_the_class(name: str) -> None:
    assert getattr(send.StreamConfig, f"DEFAULT_{name.upper()}") == DEFAULTS[name]


@pytest.mark.parametrize("how", ["keyword", "attribute"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_packet_size", 0),
        ("max_packet_size", 9000),
        ("max_packet_size", np.int64(9000)),
        ("max_packet_size", 2**64 - 1),
        ("rate", 0),
        ("rate", 1.5e9),
        ("rate", np.float32(2)),
        ("burst_size", 0),
        ("burst_size", 2**64 - 1),
        ("max_heaps", 1),
        ("max_heaps", 2**64 - 1),
        ("burst_rate_ratio", 1),
        ("burst_rate_ratio", 1e300),
        ("rate_method", send.RateMethod.HW),
    ],
)
def test_sensible_value_is_taken(how: str, name: str, value: Any) -> None:
    assert configured(how, name, value) == value


@pytest.mark.parametrize("how", ["keyword", "attribute"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", -1),
        ("rate", math.inf),
        ("rate", math.nan),
        ("max_heaps", 0),
        ("burst_rate_ratio", 0.99),
        ("burst_rate_ratio", -1),
        ("burst_rate_ratio", math.inf),
        ("burst_rate_ratio", math.nan),
    ],
)
def test_senseless_value_is_a_value_error(how: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (spead2's texts differ from option to option)
        configured(how, name, value)


@pytest.mark.parametrize("how", ["keyword", "attribute"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            (name, value)
            for name in ("max_packet_size", "burst_size", "max_heaps")
            for value in (-1, 2**64, 1.5, "1", None)
        ],
        *[(name, value) for name in ("rate", "burst_rate_ratio") for value in ("1", None, [1])],
        *[("rate_method", value) for value in (0, "AUTO", None)],
    ],
)
def test_value_of_wrong_type_is_a_type_error(how: str, name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        configured(how, name, value)


@pytest.mark.ours
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", -1, "rate must be non-negative and finite, not -1; 0 is as fast as possible"),
        ("burst_rate_ratio", 0.5, "burst_rate_ratio must be at least 1.0 and finite, not 0.5"),
        ("max_heaps", 0, "max_heaps cannot be 0, it must be at least 1"),
        ("rate", "1", "rate must be a number, not '1'"),
        ("rate_method", 2, "rate_method must be a RateMethod, for example AUTO, not 2"),
        ("burst_size", -1, "burst_size must be from 0 to 2"),
    ],
)
def test_error_names_the_option_and_what_it_may_be(name: str, value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message.replace("**", ".")):
        send.StreamConfig(**{name: value})


def test_rejected_value_leaves_the_old_one() -> None:
    config = send.StreamConfig(rate=5)
    with pytest.raises(ValueError, match="rate"):
        config.rate = -1
    assert config.rate == 5


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        send.StreamConfig(1472)


def test_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        send.StreamConfig(max_packet=1472)


def test_unknown_attribute_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        send.StreamConfig().max_packet = 1472


def test_burst_rate_is_the_product_and_cannot_be_set() -> None:
    config = send.StreamConfig(rate=1000, burst_rate_ratio=1.5)
    assert config.burst_rate == 1500
    with pytest.raises(AttributeError):
        config.burst_rate = 1


def test_rate_methods_are_an_enumeration() -> None:
    assert issubclass(send.RateMethod, enum.Enum)
    assert {name: method.value for name, method in send.RateMethod.__members__.items()} == {
        "SW": 0,
        "HW": 1,
        "AUTO": 2,
    }


@pytest.mark.ours
def test_repr_tells_all_options() -> None:
    text = repr(send.StreamConfig(rate=5))
    assert text.startswith("StreamConfig(")
    for name in DEFAULTS:
        assert f"{name}=" in text
