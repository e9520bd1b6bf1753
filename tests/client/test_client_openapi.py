"""The client's models, inputs, routes and problems are those of the service's own description."""

import ast
import inspect
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

import service.http.problems
from glyphrec_client import AsyncClient, Client, calls, inputs, models, problems
from glyphrec_client.answers import HEADERS
from service.app import create_app
from service.errors import REFUSALS, ServiceError
from service.settings import Settings

BASES = {"Model", "Answer"}
# What the client calls otherwise than the service does.
NAMES = {"StoredItem": "StoredItemOut", "ShownItem": "StoredItemOut", "UnusedValue": "UnusedValueOut"}
NAMES |= {"FoundItem": "FoundItemOut", "RankedItem": "RankedItemOut"}
NAMES |= {"Filter": "FilterIn", "Range": "RangeIn", "Diversity": "DiversityIn", "Event": "EventIn"}
WORDS = {"title", "description", "default", "examples"}
BOUNDS = {"minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "exclusiveMinimum"}


@pytest.fixture(scope="module")
def document(bundle) -> dict[str, Any]:
    return create_app(Settings(bundle=bundle, redis_url="redis://127.0.0.1:1", threads=1)).openapi()


def plain(schema: Any) -> Any:
    """Without words and bounds, and with references by the service's name."""
    if isinstance(schema, list):
        return [plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {"$ref": NAMES.get(name, name)}
    kept = {
        name: plain(value)
        for name, value in schema.items()
        if name not in WORDS | BOUNDS and not (name == "additionalProperties" and value is True)
    }
    choices = [*kept.pop("anyOf", []), *kept.pop("oneOf", [])]
    if choices:  # a choice among choices is one
        flat = [part for each in choices for part in each.get("anyOf", [each])]
        kept["anyOf"] = sorted(flat, key=str)
    return kept


def answers() -> list[type[BaseModel]]:
    return [
        each
        for _, each in inspect.getmembers(models, inspect.isclass)
        if issubclass(each, models.Model) and each.__name__ not in BASES
    ]


@pytest.mark.parametrize("model", answers(), ids=lambda model: model.__name__)
def test_an_answer_has_the_fields_of_the_description_with_their_types(document, model):
    name = NAMES.get(model.__name__, model.__name__)
    theirs, ours = document["components"]["schemas"][name], model.model_json_schema()
    fields = {field: plain(each) for field, each in ours["properties"].items()}
    in_headers = (fields.keys() & HEADERS.keys()) - theirs["properties"].keys()
    told = {field: plain(each) for field, each in theirs["properties"].items()}
    assert {field: each for field, each in fields.items() if field not in in_headers} == told
    assert set(ours["required"]) == set(theirs["required"])


@pytest.fixture(scope="module")
def typed_inputs() -> dict[str, Any]:
    """The classes of inputs.py by name. On Python 3.11, pydantic reads only those of typing_extensions."""
    source = inspect.getsource(inputs)
    name = "from typing import Any, TypedDict"
    assert name in source
    found: dict[str, Any] = {"__name__": "typed_inputs"}
    exec(source.replace(name, "from typing import Any\nfrom typing_extensions import TypedDict"), found)
    return found


@pytest.mark.parametrize("name", ["Filter", "Range", "Diversity", "Event"])
def test_an_input_has_the_fields_of_the_description_with_their_types(document, typed_inputs, name):
    theirs = document["components"]["schemas"][NAMES[name]]
    ours = TypeAdapter(typed_inputs[name]).json_schema()
    assert {field: plain(each) for field, each in ours["properties"].items()} == {
        field: plain(each) for field, each in theirs["properties"].items()
    }
    assert set(ours.get("required", ())) == set(theirs.get("required", ()))


CALLS = [
    calls.recommend([]),
    calls.rank([], []),
    calls.recommend_batch([]),
    calls.search("a"),
    calls.put_items([]),
    calls.list_items(),
    calls.get_item("a"),
    calls.patch_item("a", {}),
    calls.delete_item("a"),
    calls.similar_items("a"),
    calls.get_image("a"),
    calls.put_image("a", b"\xff\xd8\xff"),
    calls.delete_image("a"),
    calls.send_events([]),
    calls.info(),
    calls.ready(),
    calls.live(),
    calls.bundles(),
    calls.change_bundle("b"),
]


def test_the_client_has_every_route_of_the_description_and_no_other(document):
    asked = {
        (each.method, each.path.replace("/a", "/{item_id}", 1) if "/items/" in each.path else each.path)
        for each in CALLS
    }
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert asked == described


def test_what_the_client_sends_are_fields_of_the_description(document):
    schema = document["components"]["schemas"]["RecommendRequest"]["properties"]
    sent = inspect.signature(calls.recommend).parameters.keys() - {"request_id"}
    assert sent == schema.keys()
    schema = document["components"]["schemas"]["SearchRequest"]["properties"]
    assert inspect.signature(calls.search).parameters.keys() == schema.keys()
    schema = document["components"]["schemas"]["RankRequest"]["properties"]
    assert inspect.signature(calls.rank).parameters.keys() == schema.keys()
    for call in CALLS:
        path = call.path.replace("/a", "/{item_id}", 1) if "/items/" in call.path else call.path
        described = document["paths"][path][call.method.lower()].get("parameters", [])
        assert call.params.keys() <= {each["name"] for each in described if each["in"] == "query"}


def test_both_clients_have_the_same_methods_with_the_same_arguments_and_words():
    one, other = (
        {name: each for name, each in vars(client).items() if hasattr(each, "__wrapped__")}
        for client in (Client, AsyncClient)
    )
    assert one.keys() == other.keys()
    assert len(one) == len(CALLS) + 4  # put_item, put_many, all_items, any_json
    for name, method in one.items():
        assert inspect.signature(method) == inspect.signature(other[name])
        assert method.__doc__ == other[name].__doc__
        assert method.__name__ == name
    bound = inspect.signature(Client().recommend)
    assert list(bound.parameters)[:2] == ["history", "limit"]


def slugs_of_the_service() -> set[str]:
    """Those of its errors, and those that problems.py writes by itself."""
    found, classes = {"internal"}, [ServiceError]
    while classes:
        below = classes.pop().__subclasses__()
        found |= {each.slug for each in below}
        classes += below
    tree = ast.parse(inspect.getsource(service.http.problems))
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="_problem"), args=[ast.Constant(value=slug), *_]):
                found.add(slug)
            case ast.Assign(
                targets=[ast.Tuple(elts=[ast.Name(id="slug"), _])],
                value=ast.Tuple(elts=[ast.Constant(value=slug), _]),
            ):
                found.add(slug)
    return found


def test_every_problem_of_the_service_has_a_class_and_every_class_its_problem():
    found = slugs_of_the_service()
    assert {"invalid-request", "no-such-route", "method-not-allowed"} <= found
    assert problems.PROBLEMS.keys() == found


def test_a_class_is_named_after_its_problem_and_passing_ones_are_known():
    for slug, each in problems.PROBLEMS.items():
        assert each.__name__ == "".join(part.capitalize() for part in slug.split("-"))
    passing = {slug for slug, each in problems.PROBLEMS.items() if issubclass(each, problems.PassingProblem)}
    assert passing == REFUSALS
