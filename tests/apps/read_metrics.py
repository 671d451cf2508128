"""Reads metrics as others do and prints what it found as JSON; ends with 1 and the reason where they are wrong.

    read_metrics.py openmetrics FILE      Prometheus' strict parser of OpenMetrics
    read_metrics.py classic FILE          its parser of the older format
    read_metrics.py emf SCHEMA FILE       every line is valid against the JSON schema
"""

import json
import sys

import jsonschema
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics


def families(read, path):
    with open(path, encoding="utf-8") as file:
        found = list(read.text_string_to_metric_families(file.read()))
    return [
        {
            "name": family.name,
            "type": family.type,
            "unit": family.unit,
            "help": family.documentation,
            "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
        }
        for family in found
    ]


def valid_lines(schema, path):
    with open(schema, encoding="utf-8") as file:
        validator = jsonschema.Draft7Validator(json.load(file))
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        validator.validate(line)
    return len(lines)


what, *paths = sys.argv[1:]
if what == "emf":
    found = valid_lines(*paths)
else:
    found = families(openmetrics if what == "openmetrics" else parser, *paths)
json.dump(found, sys.stdout)
