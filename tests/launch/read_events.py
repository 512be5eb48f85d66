"""Reads TensorBoard's event files, checksums included, without TensorBoard or protobuf: read_events.py FOLDER prints an object an event."""
import json
import os
import struct
import sys


def crc32c(data):
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    with open(path, "rb") as file:
        data = file.read()
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise ValueError(f"{path}: {len(data) - at} bytes at the end are no record")
        (length,), (check,) = struct.unpack_from("<Q", data, at), struct.unpack_from("<I", data, at + 8)
        if check != masked(data[at:at + 8]):
            raise ValueError(f"{path}: byte {at}: wrong checksum of a length")
        event = data[at + 12:at + 12 + length]
        if at + 16 + length > len(data) or struct.unpack_from("<I", data, at + 12 + length)[0] != masked(event):
            raise ValueError(f"{path}: byte {at}: wrong checksum of an event, or the event does not end")
        at += 16 + length
        yield event


def fields(message):
    """(number, wire type, value) of each field; groups do not occur."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 2: None, 5: 4}[kind]
            size = varint() if size is None else size
            value = message[at:at + size]
            if len(value) != size:
                raise ValueError(f"field {number} does not end")
            at += size
        yield number, kind, value


def read_event(message):
    """As event.proto and summary.proto number the fields."""
    event = {"step": 0}
    for number, kind, value in fields(message):
        if (number, kind) == (1, 1):
            event["wall_time"], = struct.unpack("<d", value)
        elif (number, kind) == (2, 0):
            event["step"] = value
        elif (number, kind) == (3, 2):
            event["file_version"] = value.decode()
        elif (number, kind) == (7, 2):
            event["session_status"] = dict((n, v) for n, _, v in fields(value)).get(1, 0)
        elif (number, kind) == (5, 2):
            scalars = event.setdefault("scalars", {})
            for _, _, each in fields(value):
                parts = {n: v for n, _, v in fields(each)}
                tag = parts[1].decode()
                if tag in scalars:
                    raise ValueError(f"{tag} stands twice in an event")
                scalars[tag], = struct.unpack("<f", parts[2])
        else:
            raise ValueError(f"an event has field {number} of wire type {kind}")
    return event


def event_files(folder):
    """In the order in which TensorBoard reads them."""
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if "tfevents" in name]


def read_events(path):
    return [read_event(record) for record in records(path)]


if __name__ == "__main__":
    for path in event_files(sys.argv[1]):
        for event in read_events(path):
            print(json.dumps({"file": os.path.basename(path), **event}))
