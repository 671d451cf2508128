"""Checks task definitions and the templates that hold one, offline: what AWS would say on registering them, as far as
its own models know. Usage: validate.py [--self-test] [--same-sidecar] FILE...

Each layer sees what the others don't: botocore's ParamValidator types, names and what is required; a walk over the same
model its enums; cfn-lint sizes that go together; task_rules.py references and ranges. --same-sidecar: the container
`hostward` is the same in all files. --self-test: break the first file in known ways, each of which must be found."""

import argparse
import copy
import json
import pathlib
import sys

import botocore.loaders
import botocore.model
import botocore.validate
import cfnlint.api
import kubernetes_validate

sys.dont_write_bytecode = True  # no __pycache__ beside these two
import documents  # noqa: E402
import task_rules  # noqa: E402

KUBERNETES = "1.34"
REGION = "eu-west-1"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--self-test", action="store_true", help="first break the first file, a task definition")
    parser.add_argument("--same-sidecar", action="store_true", help="the container hostward must be the same in all")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()

    found = []
    if arguments.self_test:
        found += self_test(json.loads(arguments.files[0].read_text()))
    sidecars = {}
    for path in arguments.files:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            found.append(f"{path}: {error}")
            continue
        kind, tasks, problems = check(path, text)
        found += [f"{path}: {problem}" for problem in problems]
        # Who has no valid containers is in `found` already.
        sidecars |= {f"{path}#{n}": sidecar(task) for n, task in enumerate(tasks, 1) if not problems}
        print(f"{path}: {kind}, {'not valid' if problems else 'valid'}")
    if arguments.same_sidecar and sidecars:
        found += differences(sidecars)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def check(path, text):
    """The file's kind, its task definitions and what is wrong with it."""
    try:
        kind, tasks, document = documents.read(path, text)
    except documents.Unreadable as error:
        return "unreadable", [], [str(error)]
    problems = []
    if kind == "cloudformation":
        problems += by_cfn_lint(text)
    elif kind == "kubernetes":
        problems += by_kubernetes(document)
    if kind != "kubernetes" and not tasks:
        problems.append("no task definition in it")
    for task in tasks:
        layers = [by_botocore, by_enums, by_rules]
        # A template has been linted already, as it is.
        layers += [by_cfn_lint_as_template] if kind != "cloudformation" else []
        for layer in layers:
            problems += layer(task)
    return kind, tasks, problems


def input_shape():
    model = botocore.loaders.Loader().load_service_model("ecs", "service-2")
    return botocore.model.ServiceModel(model).operation_model("RegisterTaskDefinition").input_shape


SHAPE = input_shape()


def by_botocore(task):
    report = botocore.validate.ParamValidator().validate(task, SHAPE).generate_report()
    return [f"{line} (botocore)" for line in report.splitlines()]


def by_enums(task, shape=SHAPE, where=""):
    found = []
    if shape.type_name == "structure" and isinstance(task, dict):
        for name in shape.members.keys() & task.keys():
            found += by_enums(task[name], shape.members[name], f"{where}.{name}" if where else name)
    elif shape.type_name == "list" and isinstance(task, list):
        for index, value in enumerate(task):
            found += by_enums(value, shape.member, f"{where}[{index}]")
    elif getattr(shape, "enum", None) and task not in shape.enum:
        found.append(f"{where}: {task!r} is none of {', '.join(shape.enum)} (enum)")
    return found


def by_rules(task):
    try:
        return [f"{problem} (rule)" for problem in task_rules.problems(task)]
    except (AttributeError, KeyError, TypeError) as error:
        # Only a document whose types are wrong gets here, and botocore has said which. Never silent all the same.
        return [f"references and ranges can't be judged: {error!r} (rule)"]


def by_cfn_lint_as_template(task):
    return by_cfn_lint(json.dumps(documents.to_cloudformation(task)))


def by_cfn_lint(template):
    matches = cfnlint.api.lint(template, regions=[REGION])
    return [f"{'/'.join(map(str, match.path or []))}: {match.message} (cfn-lint {match.rule.id})" for match in matches]


def by_kubernetes(document):
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message} (kubernetes {KUBERNETES})"]
    return []


def sidecar(task):
    """hostward's container, without what each kind of file writes in its own way."""
    ours = [dict(container) for container in task["containerDefinitions"] if container.get("name") == "hostward"]
    for container in ours:
        # Whose stream it is, and in which unit the buffer's size is written, differs. That it is said must not.
        options = container.pop("logConfiguration", {}).get("options", {})
        container["logConfiguration"] = {"mode": options.get("mode"), "bounded": "max-buffer-size" in options}
    return ours


def differences(sidecars):
    (first, expected), *others = sidecars.items()
    found = [] if len(expected) == 1 else [f"{first}: {len(expected)} containers are named hostward"]
    for name, given in others:
        if given == expected or not expected:
            continue
        wrong = {k for k in expected[0] if not given or given[0].get(k) != expected[0][k]}
        wrong |= given[0].keys() - expected[0].keys() if given else set()
        found.append(f"{name}: the container hostward isn't {first}'s: {', '.join(sorted(wrong))}")
    return found


def self_test(good):
    """What each layer has to find in a good task definition that was broken. A problem is a layer that is blind."""

    def app(task):
        return task["containerDefinitions"][0]

    def ours(task):
        return task["containerDefinitions"][1]

    breaks = [
        (by_botocore, "a number for a string", lambda t: t.update(cpu=512)),
        (by_botocore, "a string for a number", lambda t: ours(t).update(memory="128")),
        (by_botocore, "an unknown key", lambda t: ours(t).update(essental=True)),
        (by_botocore, "nothing that is required", lambda t: ours(t)["healthCheck"].pop("command")),
        (by_enums, "ARM", lambda t: t["runtimePlatform"].update(cpuArchitecture="ARM")),
        (by_enums, "htp", lambda t: ours(t)["portMappings"][0].update(appProtocol="htp")),
        (by_enums, "RUNNING", lambda t: ours(t)["dependsOn"][0].update(condition="RUNNING")),
        (by_cfn_lint_as_template, "cpu and memory that don't fit", lambda t: t.update(cpu="256", memory="8192")),
        (by_cfn_lint_as_template, "a log without a group", lambda t: log(ours(t)).pop("awslogs-group")),
        (by_rules, "dependsOn nobody", lambda t: ours(t)["dependsOn"][0].update(containerName="ap")),
        (by_rules, "HEALTHY without a check", lambda t: ours(t)["dependsOn"][0].update(condition="HEALTHY")),
        (by_rules, "COMPLETE of an essential one", lambda t: ours(t)["dependsOn"][0].update(condition="COMPLETE")),
        (by_rules, "a circle", lambda t: ours(t)["dependsOn"][0].update(containerName="hostward")),
        (by_rules, "stopTimeout 500", lambda t: ours(t).update(stopTimeout=500)),
        (by_rules, "interval 1", lambda t: ours(t)["healthCheck"].update(interval=1)),
        (by_rules, "a command without CMD", lambda t: ours(t)["healthCheck"].update(command=["/hostward"])),
        (by_rules, "two memories above the task's", lambda t: app(t).update(memory=1000)),
        (by_rules, "another hostPort", lambda t: ours(t)["portMappings"][0].update(hostPort=80)),
        (by_rules, "one port twice", lambda t: app(t).update(portMappings=ours(t)["portMappings"])),
        (by_rules, "a port's name in capitals", lambda t: ours(t)["portMappings"][0].update(name="Web")),
        (by_rules, "one name twice", lambda t: app(t).update(name="hostward")),
        (by_rules, "nothing essential", lambda t: [c.update(essential=False) for c in t["containerDefinitions"]]),
        (by_rules, "no execution role", lambda t: t.pop("executionRoleArn")),
        (by_rules, "no volume of that name", lambda t: ours(t).update(mountPoints=[{"sourceVolume": "tmp"}])),
        (by_rules, "links in awsvpc", lambda t: ours(t).update(links=["app"])),
    ]
    blind = []
    for layer, what, damage in breaks:
        broken = copy.deepcopy(good)
        damage(broken)
        if not layer(broken):
            blind.append(f"self-test: {layer.__name__} misses: {what}")
    blind += [f"self-test: {problem}" for problem in broken_files(good)]
    print(f"self-test: {len(breaks)} broken task definitions, {len(blind)} not found out")
    return blind


def log(container):
    return container["logConfiguration"]["options"]


def broken_files(good):
    """The other kinds: each must be read to its end, not only as far as its syntax."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}
    if by_kubernetes(pod):
        yield "a good pod is refused"
    for part, wrong in [("spec", {"enableServiceLink": False}), ("spec", {"terminationGracePeriodSeconds": "60"})]:
        if not by_kubernetes(pod | {part: pod[part] | wrong}):
            yield f"no problem in a pod with {wrong}"
    for name, text in {
        "broken.tf": "locals {\n  a = [\n}\n",
        "unknown.tf": 'resource "aws_ecs_task_definition" "a" {\n  container_definitions = jsonencode(local.a)\n}\n',
        "broken.json": "{,}",
        "broken.yaml": "a: [",
        "empty.json": "{}",
        "template.json": '{"Resources": {"A": {"Type": "AWS::ECS::TaskDefinition", "Properties": {"Famly": "a"}}}}',
    }.items():
        if not check(pathlib.Path(name), text)[2]:
            yield f"no problem in {name}"
    broken = copy.deepcopy(good)
    broken["containerDefinitions"][1]["stopTimeout"] = 30
    if not differences({"good": sidecar(good), "other": sidecar(broken)}):
        yield "another stopTimeout is the same sidecar"
    # There and back: what is judged in a template is what stands in the task definition.
    template = documents.to_cloudformation(good)
    if documents.from_cloudformation(template["Resources"]["Task"]["Properties"]) != good:
        yield "a task definition isn't the same after CloudFormation's form"


if __name__ == "__main__":
    sys.exit(main())
