"""Prints the outcomes of JUnit's XML files as lines of `name<TAB>outcome`, as main.sh wants them."""

import sys
import xml.etree.ElementTree as tree


def outcome(case):
    for child in case:
        if child.tag in ("failure", "error"):
            return "failed"
        if child.tag == "skipped":
            return "skipped"
    return "ok"


outcomes = {}
for path in sys.argv[1:]:
    for case in tree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".encode("unicode_escape").decode()
        # A test that passed and whose cleaning up failed is there twice.
        if outcomes.get(name) != "failed":
            outcomes[name] = outcome(case)
for name in sorted(outcomes):
    print(name, outcomes[name], sep="\t")
