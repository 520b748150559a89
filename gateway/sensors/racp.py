"""Record Access Control Point 0x2A52: how stored measurements are asked for, and what the Sensor answers."""

from gateway.port import const
from gateway.reading import Racp, check_length

RECORD_ACCESS_CONTROL_POINT = const(0x2A52)
REPORT_ALL = b"\x01\x01"
SUCCESS = "success"
NO_RECORDS = "no records found"
"""The normal answer of an empty store, no error."""

_NUMBER_RESPONSE = const(5)
_RESPONSE_CODE = const(6)

_PROCEDURES = {
    1: "report stored records",
    2: "delete stored records",
    3: "abort operation",
    4: "report number of stored records",
    5: "number of stored records response",
    6: "response code",
    7: "combined report",
    8: "combined report response",
}
_OPERATORS = {
    0: "null",
    1: "all records",
    2: "less than or equal to",
    3: "greater than or equal to",
    4: "within range of",
    5: "first record",
    6: "last record",
}
_RESPONSES = {
    1: SUCCESS,
    2: "op code not supported",
    3: "invalid operator",
    4: "operator not supported",
    5: "invalid operand",
    6: NO_RECORDS,
    7: "abort unsuccessful",
    8: "procedure not completed",
    9: "operand not supported",
    10: "server busy",
}


def decode_racp(value: "bytes | memoryview") -> Racp:
    """Decode 0x2A52, requests and responses. Raises Truncated."""
    check_length(value, 2, "record access control point")
    procedure, operator = _word(_PROCEDURES, value[0]), _word(_OPERATORS, value[1])
    if value[0] == _NUMBER_RESPONSE:
        check_length(value, 4, "number of stored records response")
        return Racp(procedure, operator, bytes(value[4:]), None, None, value[2] | value[3] << 8)
    if value[0] == _RESPONSE_CODE:
        check_length(value, 4, "RACP response code")
        request, response = _word(_PROCEDURES, value[2]), _word(_RESPONSES, value[3])
        return Racp(procedure, operator, bytes(value[4:]), request, response, None)
    return Racp(procedure, operator, bytes(value[2:]), None, None, None)


def _word(table: "dict[int, str]", code: int) -> str:
    return table.get(code) or f"reserved {code}"
