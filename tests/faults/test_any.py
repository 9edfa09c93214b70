"""Any process is killed at any moment, again and again under load, also while it starts; nobody repairs anything."""

import json
import random
import time
from pathlib import Path

from e2e import processes
from e2e.processes import Backend, until
from faults import figures
from faults.fleet import COMMANDS, SERVICES, Fleet
from faults.load import Load

from ordersys.settings import default_data

START_SECONDS = 2.0
"""About how long a role takes to start on a busy machine: some kills come in the middle of that."""


def test_any_process_is_killed_at_any_moment(engine: str, backend: Backend, rounds: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - to be repeated, not secret
    fleet = Fleet(backend, *COMMANDS)
    cuts = early = 0
    with Load(backend, seed=seed, over_http=2, pause=0.005) as load:
        for number in range(2 * rounds):
            load.goes_on(dice.randint(1, 100))
            if number % 6 == 5:  # as when the power fails
                victims = list(COMMANDS)
                cuts += 1
            else:
                victims = [dice.choice(list(COMMANDS))]
            fleet.kill(*victims)
            if dice.random() < 0.3:
                fleet.launch(*victims)
                time.sleep(dice.uniform(0, START_SECONDS))  # a random moment, not a wait for anything
                fleet.kill(*victims)
                early += len(victims)
            fleet.start(*victims)
        load.goes_on()
    found = load.verdict(fleet.ever("fanout"), fleet.ever("topic"))
    figures.record("any", engine, kills=fleet.kills, during_start=early, power_cuts=cuts, **found)


def test_the_first_start_is_killed_at_any_moment(engine: str, tmp_path: Path, rounds: int, seed: int) -> None:
    """Databases and broker do not exist yet: half of a schema or of a seed would be there for good."""
    dice = random.Random(seed)  # noqa: S311 - to be repeated, not secret
    kills = 0
    for number in range(max(1, rounds // 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with processes.engine(engine) as settings, Backend(folder, settings) as backend:
            fleet = Fleet(backend, *SERVICES, start=False)
            for _ in range(3):
                fleet.launch(*SERVICES)
                for name in dice.sample(SERVICES, len(SERVICES)):
                    time.sleep(dice.uniform(0, START_SECONDS / len(SERVICES)))
                    fleet.kill(name)
            kills += fleet.kills
            fleet.start(*SERVICES)
            is_the_first_day(fleet)
    figures.record("first start", engine, kills=kills)


def is_the_first_day(fleet: Fleet) -> None:
    """The stock is what the seed says, and an order goes all the way."""
    inventory = json.loads((default_data() / "inventory.json").read_text(encoding="utf-8"))
    stock = {each["id"]: each["available"] for each in fleet.backend.client("list-products")["products"]}
    assert stock == {each["product_id"]: each["quantity"] for each in inventory}
    order_id = fleet.backend.place("1:1")["id"]
    until(lambda: bool(fleet["fanout"].events(order_id)), "fanout hears of it")
    until(lambda: bool(fleet["topic"].events(order_id)), "topic hears of it")
    fleet.settled()
    fleet.backend.balances()
