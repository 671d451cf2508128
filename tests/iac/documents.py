"""Reads a file of any kind that hostward is shown in, and finds the task definitions in it, in the words of
RegisterTaskDefinition. What only AWS knows (a `!Ref`, an ARN) becomes a placeholder."""

import io
import json
import re

import cfnlint.decode
import hcl2
import yaml

# Their keys are the user's, not the API's.
FREE_MAPS = {"options", "dockerLabels", "labels", "driverOpts"}
# Where CloudFormation's name is more than the API's with a capital.
UNLIKE = {
    "efsVolumeConfiguration": "EFSVolumeConfiguration",
    "fsxWindowsFileServerVolumeConfiguration": "FSxWindowsFileServerVolumeConfiguration",
    "fileSystemId": "FilesystemId",
    "iam": "IAM",
}
ALIKE = {theirs: ours for ours, theirs in UNLIKE.items()}
PSEUDO_PARAMETERS = {"AWS::Region": "eu-west-1", "AWS::Partition": "aws", "AWS::AccountId": "123456789012"}
LOCAL = re.compile(r"\$\{local\.(\w+)\}")
JSONENCODE = re.compile(r"\$\{jsonencode\(local\.(\w+)\)\}")


class Unreadable(Exception):
    """The file isn't what its name says, or none of the kinds known here."""


def read(path, text):
    """The kind of the file, the task definitions in it, and the whole document."""
    if path.suffix == ".tf":
        document = terraform(text)
        return "terraform", terraform_tasks(document), document
    try:
        if path.suffix == ".json":
            document = json.loads(text)
        else:
            document = cloudformation(text) if "AWSTemplateFormatVersion" in text else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise Unreadable(f"neither JSON nor YAML: {error}") from error
    if not isinstance(document, dict):
        raise Unreadable("the document is no object")
    if "Resources" in document:
        resources = document["Resources"].values()
        tasks = [r.get("Properties", {}) for r in resources if r.get("Type") == "AWS::ECS::TaskDefinition"]
        return "cloudformation", [from_cloudformation(task) for task in tasks], document
    if "apiVersion" in document:
        return "kubernetes", [], document
    if "containerDefinitions" in document:
        return "task definition", [document], document
    raise Unreadable("neither a task definition, nor CloudFormation, Terraform or Kubernetes")


def cloudformation(text):
    template, errors = cfnlint.decode.decode_str(text)
    if errors:
        raise Unreadable("; ".join(error.message for error in errors))
    return template


def to_cloudformation(task):
    """A template with this task definition in it."""

    def pascal(value, free=False):
        if isinstance(value, dict):
            return {
                key if free else UNLIKE.get(key, key[:1].upper() + key[1:]): pascal(inner, key in FREE_MAPS)
                for key, inner in value.items()
            }
        return [pascal(inner) for inner in value] if isinstance(value, list) else value

    properties = pascal(task)
    return {"Resources": {"Task": {"Type": "AWS::ECS::TaskDefinition", "Properties": properties}}}


def from_cloudformation(value, free=False):
    if isinstance(value, dict):
        if len(value) == 1:
            function, argument = next(iter(value.items()))
            if function == "Ref" or function.startswith("Fn::"):
                return PSEUDO_PARAMETERS.get(argument if isinstance(argument, str) else "", "placeholder")
        api = {key: key if free else ALIKE.get(key, key[:1].lower() + key[1:]) for key in value}
        return {api[key]: from_cloudformation(inner, api[key] in FREE_MAPS) for key, inner in value.items()}
    return [from_cloudformation(inner) for inner in value] if isinstance(value, list) else value


def terraform(text):
    options = hcl2.SerializationOptions(strip_string_quotes=True, with_comments=False, explicit_blocks=False)
    try:
        return hcl2.load(io.StringIO(text), serialization_options=options)
    except Exception as error:  # of lark, one of many
        raise Unreadable(f"no HCL: {error}") from error


def terraform_tasks(document):
    """The resources, with `jsonencode(local.NAME)` put in. Only what is literal or a local can be read like this."""
    known = {name: value for block in document.get("locals", []) for name, value in block.items()}

    def value_of(name):
        if name not in known:
            raise Unreadable(f"there is no local.{name}")
        return known[name]

    def resolved(value):
        if isinstance(value, str) and (local := LOCAL.fullmatch(value)):
            return resolved(value_of(local[1]))
        if isinstance(value, dict):
            return {key.strip('"'): resolved(inner) for key, inner in value.items()}
        return [resolved(inner) for inner in value] if isinstance(value, list) else value

    def camel(name):
        first, *rest = name.split("_")
        return first + "".join(word.capitalize() for word in rest)

    tasks = []
    for resource in document.get("resource", []):
        for attributes in resource.get("aws_ecs_task_definition", {}).values():
            task = {camel(name): resolved(value) for name, value in attributes.items()}
            if "runtimePlatform" in task:
                task["runtimePlatform"] = {camel(k): v for k, v in task["runtimePlatform"][0].items()}
            encoded = JSONENCODE.fullmatch(task.get("containerDefinitions", ""))
            if not encoded:
                raise Unreadable("container_definitions must be jsonencode(local.NAME) to be read here")
            task["containerDefinitions"] = resolved(value_of(encoded[1]))
            tasks.append(task)
    return tasks
