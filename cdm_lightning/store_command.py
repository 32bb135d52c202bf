"""The command line of `store`: parse, dispatch, say. Only `export` and `add` import torch."""

from pathlib import Path
from typing import Any

from cdm_lightning import store_commands
from cdm_lightning.errors import BadInput, did_you_mean
from cdm_lightning.json_option import check_json, write_json
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.store import Store

ACTIONS = {
    "list": "List what a store holds.",
    "show": "Show one compartment of a store.",
    "verify": "Check every byte of a store.",
    "export": "Write the backbone of a store as a store of its own, so that owners can fit at home.",
    "add": "Take a compartment that was fitted elsewhere on this store's backbone.",
}
EXPECTED = "`store list`, `store show SOURCE`, `store verify`, `store export --backbone OUT` or `store add FOLDER`"


def store_parser(action: str) -> Parser:
    """Return the parser of an action."""
    parser = new_parser(f"store {action}", ACTIONS[action])
    parser.add_argument("--store", type=str, required=True, help="the store")
    parser.add_argument("--json", type=str | None, default=None, help="also write the data to this file")
    if action == "show":
        parser.add_argument("source", type=str, help="the compartment to show")
    if action == "export":
        parser.add_argument("--backbone", type=str, required=True, help="folder of the new store")
    if action == "add":
        parser.add_argument("folder", type=str, help="the compartment: STORE/compartments/SOURCE of another store")
        parser.add_argument("--replace", action="store_true", help="also in place of another one of the same source")
    return parser


def run(arguments: list[str]) -> None:
    """Run one action.

    Raises:
        BadInput: there is no such action, or it cannot be done.
    """
    action = arguments[0] if arguments else ""
    if action in ("-h", "--help"):
        print(f"usage: python -m cdm_lightning store ACTION [options]\n\nactions: {EXPECTED}")
        return
    if action not in ACTIONS:
        raise BadInput(f"store needs an action: {EXPECTED}{did_you_mean(action, ACTIONS)}")
    config = store_parser(action).parse_args(arguments[1:])
    check_json(config.json)
    store = Store.open(Path(config.store))
    data = found(action, store, config)
    write_json(config.json, data)
    print(said(action, store, data))


def found(action: str, store: Store, config: Any) -> Any:
    """Do an action, and return its data."""
    if action == "list":
        return store_commands.listing_data(store)
    if action == "show":
        return store_commands.details_data(store, config.source)
    if action == "verify":
        return store_commands.verification_data(store)
    from cdm_lightning.collaboration import add_compartment, export_backbone

    if action == "export":
        exported = export_backbone(store, Path(config.backbone))
        return {"store": str(exported.path), "backbone_sha256": exported.info.backbone_sha256}
    source, done = add_compartment(store, Path(config.folder), config.replace)
    return {"source": source, "done": done, **store_commands.details_data(store, source)}


def said(action: str, store: Store, data: Any) -> str:
    """Return what an action says.

    Raises:
        StoreError: of `verify`: the store is not as it was made.
    """
    if action == "list":
        return store_commands.listing(store)
    if action == "show":
        return store_commands.details(store, data["source"])
    if action == "verify":
        return store_commands.verification(data)
    if action == "export":
        return (
            f"the backbone {data['backbone_sha256'][:12]} is in {data['store']}: an owner fits into a copy of it, and "
            "hands in compartments/SOURCE for `store add`"
        )
    return f"{data['source']}: {data['done']}; {data['n']} images, sha256 {data['sha256'][:12]}"
