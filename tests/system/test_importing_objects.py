"""Check what `load_object` says about modules and attributes that cannot be used."""

from __future__ import annotations

import pytest

from positron.system.errors import UserError
from positron.system.imports import load_object


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("import module_that_nobody_has\n", "install the missing module, or correct the one that imports it"),
        ("1 / 0\n", "correct the module"),
        (None, "correct the name, or start this command in the folder that contains the module"),
    ],
)
def test_the_advice_depends_on_what_failed(tmp_path, monkeypatch, content, advice):
    name = f"rewards_{len(advice)}"
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"^cannot import {name} for key={name}\.f \(.*\): {advice}$"):
        load_object(f"{name}.f", "key")
