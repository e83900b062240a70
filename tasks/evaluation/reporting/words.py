"""Numbers as people read them: the report's page says every figure through these."""

from collections.abc import Sequence
from typing import TypedDict

from infra.records.footprint import Footprint


class Measured(TypedDict):
    """What the words for a score depend on."""

    metric: str
    lower_is_better: bool
    name: str


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: float) -> str:
    """12345 -> 12,345"""
    return f"{value:,.0f}"


def amount(value: float) -> str:
    """3421000 -> 3.42 M; below ten thousand in full."""
    if abs(value) < 10_000:
        return count(value)
    return _scaled(value, 1000, ("", " k", " M", " B", " T"))


def size(value: float) -> str:
    """Bytes in decimal units: 31200000 -> 31.2 MB."""
    return _scaled(value, 1000, (" B", " kB", " MB", " GB", " TB", " PB"))


def memory(value: float) -> str:
    """Bytes in binary units: 2147483648 -> 2.00 GiB."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(value: float) -> str:
    """Seconds in the two largest fitting units: 492 -> 8 min 12 s."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def power(value: float) -> str:
    """1.234e14 -> 1.23 × 10¹⁴; zero is a dash."""
    if value == 0:
        return "–"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def energy(value: float | None) -> str:
    """Joules in watt-hours: 1.26e7 -> 3.50 kWh; a dash where it is not known."""
    return "–" if value is None else _scaled(value / 3600, 1000, (" Wh", " kWh", " MWh", " GWh"))


def mass(kilograms: float) -> str:
    """0.00664 -> 6.64 g; 52190 -> 52.2 t."""
    return _scaled(1e6 * kilograms, 1000, (" mg", " g", " kg", " t", " kt"))


def volume(litres: float) -> str:
    """3.096 -> 3.10 L; 202800 -> 203 kL."""
    return _scaled(1000 * litres, 1000, (" mL", " L", " kL", " ML"))


def footprint_words(footprint: Footprint) -> str:
    """CO2 and water in sentences: of how many stages each is and at which sites, or that there is no figure, and why."""
    co2, water, stages = footprint["co2_kg"], footprint["water_litres"], footprint["stages"]
    said = [
        "No figure for CO2." if co2 is None else f"CO2: {mass(co2)}, of {footprint['co2_stages']} of {stages} stages.",
        "No figure for water."
        if water is None
        else f"Water: {volume(water)}, of {footprint['water_stages']} of {stages} stages.",
    ]
    said += [f"As stated: {'; and '.join(footprint['sites'])}."] if footprint["sites"] else []
    return " ".join([*said, *footprint["missing"]])


def day(value: str) -> str:
    """ISO time to minutes: 2025-11-22T00:14:09+00:00 -> 2025-11-22 00:14"""
    return value[:16].replace("T", " ")


def score_words(value: float, benchmark: Measured) -> str:
    """A share in percent, bits per byte as they are: 41.0 or 2.714"""
    scale, digits = scale_of(benchmark)
    return f"{scale * value:.{digits}f}"


def points(value: float, benchmark: Measured) -> str:
    """A difference of two scores in the same unit, signed: +37.9"""
    scale, digits = scale_of(benchmark)
    return signed(scale * value, digits)


def signed(value: float, digits: int = 1) -> str:
    """With a true minus sign; never a signed zero."""
    text = f"{value:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def fine(value: float) -> str:
    """A plain number to four significant digits."""
    return f"{value:.4g}".replace("-", "−")


def scale_of(benchmark: Measured) -> tuple[float, int]:
    return (1.0, 3) if benchmark["lower_is_better"] else (100.0, 1)


def unit_of(benchmark: Measured) -> str:
    return f"{benchmark['metric']}, lower is better" if benchmark["lower_is_better"] else "percent"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    index = 0
    # Rounding may not carry a number to four digits before the point.
    while abs(value) >= base * 0.9995 and index < len(units) - 1:
        value, index = value / base, index + 1
    digits = 0 if index == 0 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}{units[index]}"
