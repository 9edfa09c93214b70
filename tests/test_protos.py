"""The protos: clean by `buf lint`, no break for those who generated their code from what is published."""

import shutil
from pathlib import Path

import published_protos
import pytest
import servers
from published_protos import PROTOS


@pytest.fixture(autouse=True, scope="module")
def buf() -> None:
    if published_protos.buf() is None:
        servers.missing("buf is not installed: pip install '.[test]'")


def test_the_protos_are_clean() -> None:
    assert published_protos.complaints("lint", str(PROTOS)) == []


def test_callers_are_not_broken() -> None:
    assert published_protos.breaks() == [], "make a package ordersys.core.v2 for it"


def test_the_published_descriptors_are_the_present_ones() -> None:
    assert published_protos.IMAGE.read_text(encoding="utf-8") == published_protos.printed(), published_protos.RENEW


# --- what buf sees, tried on protos that break callers ---------------------------------------------------------------

ORDER, PRODUCT = "ordersys/core/v1/order.proto", "ordersys/core/v1/product.proto"


def changed(tmp_path: Path, *steps: tuple[str, str, str]) -> Path:
    """A copy of the protos with (file, what stood there, what stands there now); the old text occurs once at least."""
    copy = tmp_path / "protos"
    shutil.copytree(PROTOS, copy)
    for file, old, new in steps:
        text = (copy / file).read_text(encoding="utf-8")
        assert old in text
        (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        ((ORDER, "  string customer_id = 2;\n  OrderStatus", "  OrderStatus"), "FIELD_NO_DELETE"),
        ((ORDER, "string customer_id = 2;", "string customer_id = 20;"), "FIELD_NO_DELETE"),
        ((ORDER, "string currency = 1;", "string iso_code = 1;"), "FIELD_SAME_NAME"),
        ((ORDER, "int64 amount = 2;", "int32 amount = 2;"), "FIELD_SAME_TYPE"),
        ((ORDER, "repeated OrderLine lines = 4;", "OrderLine lines = 4;"), "FIELD_SAME_CARDINALITY"),
        ((ORDER, "ORDER_STATUS_SHIPPED = 2;", "ORDER_STATUS_SENT = 2;"), "ENUM_VALUE_SAME_NAME"),
        ((ORDER, "message Void {}", "message Void {}\nmessage Empty {}"), ""),
        ((ORDER, "(stream OrderEvent)", "(OrderEvent)"), "RPC_SAME_SERVER_STREAMING"),
        ((PRODUCT, "  rpc GetData(GetDataRequest) returns (GetDataResponse);\n", ""), "RPC_NO_DELETE"),
        ((PRODUCT, "service ProductService", "service StockService"), "SERVICE_NO_DELETE"),
        ((PRODUCT, "returns (GetProductResponse)", "returns (ListProductsResponse)"), "RPC_SAME_RESPONSE_TYPE"),
        ((PRODUCT, '"io.ordersys.core.v1"', '"io.ordersys.v1"'), "FILE_SAME_JAVA_PACKAGE"),
        ((PRODUCT, "  int64 available = 6;", "  int64 available = 6;\n  string unit = 7;"), ""),
    ],
    ids=lambda each: each[2].strip() if isinstance(each, tuple) else each or "no break",
)
def test_a_break_is_found_and_an_addition_is_none(tmp_path: Path, step: tuple[str, str, str], rule: str) -> None:
    found = published_protos.breaks(changed(tmp_path, step))
    assert any(f": {rule}: " in each for each in found) if rule else found == [], found


def test_a_name_against_the_rules_is_found(tmp_path: Path) -> None:
    protos = changed(tmp_path, (PRODUCT, "message StockMove {", "message StockMove {\n  string bySome = 9;"))
    (found,) = published_protos.complaints("lint", str(protos))
    assert "FIELD_LOWER_SNAKE_CASE" in found


def test_protos_that_are_none_are_a_failure_and_not_silence(tmp_path: Path) -> None:
    protos = changed(tmp_path, (PRODUCT, "service ProductService {", "service ProductService"))
    found, *_ = published_protos.breaks(protos)
    assert found.startswith(f"{protos / PRODUCT}: COMPILE: ")
    with pytest.raises(RuntimeError, match=r"product\.proto"):
        published_protos.printed(protos)
    with pytest.raises(RuntimeError, match=r"nothing\.json"):
        published_protos.breaks(image=tmp_path / "nothing.json")


def test_a_break_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script itself, on a file of its own: it writes, and refuses once the protos do not keep what it wrote."""
    image = tmp_path / "protos.json"
    monkeypatch.setattr(published_protos, "IMAGE", image)
    assert published_protos.main() == 0
    written = image.read_text(encoding="utf-8")
    assert written == published_protos.printed()
    image.write_text(written.replace('"AuditStock"', '"CountStock"'), encoding="utf-8")
    assert published_protos.main() == 1
    assert '"CountStock"' in image.read_text(encoding="utf-8")
