"""A comparison as JUnit XML: a test case for each gate, so that a CI server shows which one failed and why."""

from __future__ import annotations

from xml.etree import ElementTree

from certdef.release.results import Comparison

SUITE = "certdef compare"


def as_junit(comparison: Comparison, text: str) -> bytes:
    """The XML.

    Args:
        comparison: Without a gate it is one test that passes.
        text: What a person reads, kept beside the results.
    """
    cases = comparison.gates
    counts = {
        "tests": str(max(1, len(cases))),
        "failures": str(sum(not gate.passed for gate in cases)),
        "errors": "0",
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE, **counts, "skipped": "0", "time": "0"})
    for gate in cases:
        case = _case(suite, gate.rule)
        if not gate.passed:
            measured = _printable(gate.measured)
            message = {"message": f"{_printable(gate.rule)}: {measured}", "type": "gate"}
            ElementTree.SubElement(case, "failure", message).text = measured
    if not cases:
        _case(suite, "compared, without a gate")
    ElementTree.SubElement(suite, "system-out").text = _printable(text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", {"classname": SUITE, "name": _printable(name), "time": "0"}
    )


def _printable(text: str) -> str:
    """Without the control characters that XML does not have."""
    return "".join(each for each in text if each.isprintable() or each in "\n\t")
