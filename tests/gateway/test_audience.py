"""Who may see what of the view."""

from __future__ import annotations

import json

from modelnet.watch.view import View
from tests.watch.test_view import T0, beat, card, transcript
from workers.gateway.console.audience import NOBODY, Audience


def test_what_is_kept_from_an_audience_is_kept_everywhere() -> None:
    view = View(lost_after_s=3.0, now=T0)
    view.card(card(), T0)
    view.beat(beat(), T0)
    view.transcript(transcript("secret-task", tenant="secret-tenant", auction="a"), T0)
    view.note("ledger", "Redis at secret-host")
    view.accounts([{"account": "secret-tenant"}], 1)
    for audience in (NOBODY, Audience("another")):
        assert "secret" not in json.dumps(audience.frame(view.snapshot()))
    view.tick(T0)
    seen = view.frame(0)["version"]
    for n in range(400):
        view.transcript(transcript(f"secret-task-{n}", tenant="secret-tenant", auction=f"a{n}"), T0 + n)
    view.tick(T0)
    frame = NOBODY.frame(view.frame(seen))
    assert frame["tasks"]["gone"]
    assert "secret" not in json.dumps(frame)
    assert "secret" in json.dumps(Audience("another", operator=True).frame(view.frame(seen)))
