"""The published schema: exact, complete, and as the snapshot in openapi.yaml has it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.test import Client
from rest_framework.exceptions import ValidationError
from rest_framework.test import APIClient

from migrations_api.serializers.fields import AmountField, WaveField

SNAPSHOT = Path(__file__).parent / "openapi.yaml"
OPEN = {"get_health", "get_readiness"}
ClientOf = Callable[[str | None], APIClient]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Made and validated by the command; a warning fails it."""
    made = tmp_path_factory.mktemp("schema") / "openapi.yaml"
    call_command("spectacular", "--validate", "--fail-on-warn", f"--file={made}")
    return dict(yaml.safe_load(made.read_text()))


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def resolved(schema: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    *_, name = response.get("$ref", "").split("/")
    return schema["components"]["responses"][name] if name else response


def test_snapshot__is_what_the_code_says(schema: dict[str, Any]) -> None:
    assert yaml.safe_load(SNAPSHOT.read_text()) == schema, (
        "The schema is no longer that of tests/openapi.yaml. If clients may see the change: make openapi"
    )


def test_version__is_3_1(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1.")


def test_operations__have_an_id_and_a_description_of_their_own(schema: dict[str, Any]) -> None:
    found = [operation for _, operation in operations(schema)]
    ids = [operation["operationId"] for operation in found]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", each) for each in ids)
    descriptions = [operation.get("description", "") for operation in found]
    assert "" not in descriptions
    assert len(set(descriptions)) == len(descriptions)


def test_operations__know_their_errors(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        if operation["operationId"] in OPEN:
            continue
        statuses = set(operation["responses"])
        expected = {"400", "401", "403", "405", "429", "500"}
        expected |= {"413", "415"} if "requestBody" in operation else set()
        expected |= {"404"} if "{" in name else set()
        assert expected <= statuses, name


def test_errors__are_problem_details_with_an_example(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        for status, response in operation["responses"].items():
            if status < "400" or operation["operationId"] in OPEN:
                continue
            [(media_type, content)] = resolved(schema, response)["content"].items()
            assert media_type == "application/problem+json", (name, status)
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (name, status)
            [example] = content["examples"].values()
            assert example["value"]["status"] == int(status), (name, status)


def test_operations__take_a_bearer_token(schema: dict[str, Any]) -> None:
    scheme = schema["components"]["securitySchemes"]["bearerAuth"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for name, operation in operations(schema):
        if operation["operationId"] in OPEN:
            assert operation["security"] == [{}], name
        else:
            assert {"bearerAuth": []} in operation["security"], name
            assert {} not in operation["security"], name


def test_components__are_named_for_the_client(schema: dict[str, Any]) -> None:
    names = schema["components"]["schemas"]
    assert not [name for name in names if re.search(r"Output|Serializer|RequestRequest|Enum[0-9a-f]", name)]
    assert {"Tenant", "Plan", "Step", "MigrationRun", "Rollout", "Problem", "MigrateRequest"} <= set(names)


@pytest.mark.parametrize(
    "name", ["Tenant", "MigrationRun", "MigrationRunSummary", "RunStep", "Rollout", "RolloutDetail", "RolloutPreview"]
)
def test_answers__have_all_their_fields(schema: dict[str, Any], name: str) -> None:
    """A generated client need not ask whether a state is there."""
    component = schema["components"]["schemas"][name]
    assert set(component["required"]) == set(component["properties"])


def test_unions__are_components(schema: dict[str, Any]) -> None:
    """So that a generated client has one name for each, and not one for every place that it is in."""
    strategy = schema["components"]["schemas"]["StrategyRequest"]["properties"]
    assert strategy["waves"]["items"] == {"$ref": "#/components/schemas/WaveGroup"}
    assert strategy["max_failures"]["allOf"] == [{"$ref": "#/components/schemas/Amount"}]
    for name, component in schema["components"]["schemas"].items():
        unions = [each for each in component.get("properties", {}).values() if "oneOf" in each]
        assert all("$ref" in kind for union in unions for kind in union["oneOf"]), name


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Amount", [0, 5, "0%", "5%", "12.5%", "100%", "100.0000%"], [-1, "5", "101%", "100.5%", "010%", "1.00001%"]),
        ("WaveGroup", [1, "1%", "0.5%", "100%"], [0, "0%", "0.00%", "00%", "5", "100.1%"]),
    ],
)
def test_amounts__are_described_as_they_are_taken(
    schema: dict[str, Any], name: str, good: list[Any], bad: list[Any]
) -> None:
    number, text, *_ = schema["components"]["schemas"][name]["oneOf"]
    field = {"Amount": AmountField, "WaveGroup": WaveField}[name]()

    def described(value: Any) -> bool:
        if isinstance(value, int):
            return bool(number["minimum"] <= value <= number["maximum"])
        return re.search(text["pattern"], value) is not None

    def taken(value: Any) -> bool:
        try:
            field.run_validation(value)
        except ValidationError:
            return False
        return True

    assert [(described(value), taken(value)) for value in good] == [(True, True)] * len(good)
    assert [(described(value), taken(value)) for value in bad] == [(False, False)] * len(bad)


def test_enums__are_components_wherever_an_answer_has_them(schema: dict[str, Any]) -> None:
    for name, component in schema["components"]["schemas"].items():
        inline = [field for field, of in component.get("properties", {}).items() if "enum" in of]
        assert not inline, name


def test_routes__are_all_in_the_schema(schema: dict[str, Any]) -> None:
    from migrations_api.urls import urlpatterns

    routes = {"/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern)) for pattern in urlpatterns}
    assert routes == set(schema["paths"])


@pytest.mark.parametrize("path", ["/schema", "/docs"])
@pytest.mark.parametrize(("role", "status"), [(None, 401), ("viewer", 200), ("operator", 200), ("admin", 200)])
def test_schema_and_docs__need_a_role(client_of: ClientOf, role: str | None, status: int, path: str) -> None:
    response = client_of(role).get(path)
    assert response.status_code == status
    if status >= 400:
        assert response["Content-Type"] == "application/problem+json"


def test_schema__is_served_as_it_is_generated(client_of: ClientOf, schema: dict[str, Any]) -> None:
    response = client_of("viewer").get("/schema")
    assert response["Content-Type"] == "application/json"
    assert response.json() == schema


def test_docs__a_browser_without_a_session_is_sent_to_the_login(db: None, client: Client) -> None:
    response = client.get("/docs", HTTP_ACCEPT="text/html,application/xhtml+xml")
    assert (response.status_code, response["Location"]) == (302, "/admin/login/?next=/docs")


def test_docs__a_wrong_token_is_a_401_for_a_browser_too(db: None, client: Client) -> None:
    headers = {"Accept": "text/html", "Authorization": "Bearer nonsense"}
    assert client.get("/docs", headers=headers).status_code == 401


def test_docs__stay_on_this_host(client_of: ClientOf) -> None:
    viewer = client_of("viewer")
    page = viewer.get("/docs").content.decode()
    addresses = re.findall(r"""(?:href|src)=["']([^"']+)""", page) + re.findall(r"""\burl: ["']([^"']+)""", page)
    assert len(addresses) == 5
    assert not re.findall(r"https?://|[\"']//", page)
    for address in addresses:
        assert address.startswith("/")
        assert viewer.head(address).status_code == 200


def test_docs__ask_no_validator_elsewhere(client_of: ClientOf) -> None:
    assert '"validatorUrl": null' in client_of("viewer").get("/docs").content.decode()


def test_static__needs_no_debug(client: Client) -> None:
    response = client.head("/static/admin/css/base.css")
    assert (response.status_code, response["Content-Type"]) == (200, 'text/css; charset="utf-8"')
