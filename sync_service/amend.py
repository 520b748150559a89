"""What changes at the Hub after delivery: amended, or retracted from a patient (`redate` says when).

Each Observation is looked for by its identifier, then updated under the Hub's own id with `If-Match`. So no
server has to know conditional updates, of which many race, and nobody else's change is overwritten: it makes
the attempt fail, and the next one begins with what is there then. Every step may be repeated.
"""

import orjson

from sync_service.hub import Held, Hub, Json, values_of
from sync_service.observation import ERROR, retracted, with_id
from sync_service.retry import Answer, worst

CREATE, AMEND, RETRACT = "create", "amend", "retract"
"""Kinds of Outbox rows."""
NOT_HELD = Answer(200, "the Hub does not hold it")


async def amend(hub: Hub, wanted: dict[str, bytes], creates: dict[str, bytes], patient: str) -> Answer:
    """Put `wanted` (identifier value -> amended Observation) in the place of what the patient has.

    What the Hub does not hold (it was restored to a time before) is created by its entry in `creates`.
    """
    held = await hub.held(list(wanted))
    if isinstance(held, Answer):
        return held
    answers = [await _amend_one(hub, one, wanted, patient) for one in held]
    there = {value for one in held for value in values_of(one.resource)}
    missing = [entry for value, entry in creates.items() if value not in there]
    if missing:
        made = await hub.deliver(missing)
        answers += [made] if isinstance(made, Answer) else made
    return worst(answers)


async def _amend_one(hub: Hub, one: Held, wanted: dict[str, bytes], patient: str) -> Answer:
    if not _is_of(one, patient):
        return Answer(412, "the Hub has it under somebody else: not amended")
    if one.resource.get("status") == ERROR:
        return Answer(200, "entered in error at the Hub: left so")
    value = next(value for value in values_of(one.resource) if value in wanted)
    if _says(one.resource, orjson.loads(wanted[value])):
        return Answer(200, "the Hub holds it like that")
    return await hub.update(one, with_id(wanted[value], one.key))


async def retract(hub: Hub, values: list[str], owner: str | None) -> Answer:
    """Mark what stands under these identifier values as entered in error, unless it is the owner's."""
    held = await hub.held(values)
    if isinstance(held, Answer):
        return held
    wrong = [one for one in held if owner is None or not _is_of(one, owner)]
    answers = [await hub.update(one, retracted(one.resource)) for one in wrong]
    return worst(answers) if answers else NOT_HELD


def _says(held: Json, wanted: Json) -> bool:
    """Whether all is there but the word that it has been amended."""
    return all(held.get(name) == told for name, told in wanted.items() if name not in ("status", "meta"))


def _is_of(one: Held, patient: str) -> bool:
    reference = str(one.resource.get("subject", {}).get("reference"))
    return reference == patient or reference.endswith("/" + patient)
