"""The base of every section of the configuration. Nothing here imports torch."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Settings with constraints and documentation on their fields: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def numbers(self) -> dict[str, Any]:
        """The settings that change results, as JSON-able values: fields made by `no_number` are left out."""
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                found[name] = value.numbers()
            elif not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("number") is False):
                found[name] = self.model_dump(mode="json", include={name})[name]
        return found


def no_number(**options: Any) -> Any:  # noqa: ANN401 - as pydantic's own Field
    """A Field whose value changes no result (how often is logged, where a file lies): nothing is redone for it."""
    return Field(**options, json_schema_extra={"number": False})
