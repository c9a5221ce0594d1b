"""Give each of the stages' tests its part as a keyword: pytest stages -k part3.2"""

import pytest

from stages import parts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    part_of = {test: part.number for part in parts.load() for test in parts.test_ids(part)}
    for item in items:
        names = item.nodeid.removesuffix(item.name).rstrip(":").split("::")
        test = ".".join([names[0].rpartition("/")[2].removesuffix(".py"), *names[1:], item.name])
        if test in part_of:
            item.extra_keyword_matches.add(f"part{part_of[test]}")
