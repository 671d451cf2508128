"""What ECS asks of a task definition and no schema says: references, ranges, sums. Works on the JSON that
RegisterTaskDefinition takes, and expects that its types are right already. The limits are from the API's reference."""

import re

FARGATE_STOP = (2, 120)
HEALTH_CHECK = {"interval": (5, 300), "timeout": (2, 60), "retries": (1, 10), "startPeriod": (0, 300)}
PORT_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")


def problems(task):
    """Every broken rule as a line of text, each beginning with where it is."""
    containers = task.get("containerDefinitions", [])
    yield from whole_task(task, containers)
    named = {container.get("name"): container for container in containers}
    for index, container in enumerate(containers):
        where = f"containerDefinitions[{index}]"
        for problem in [
            *references(task, container, named),
            *times(task, container),
            *ports(task, container),
            *logs(task, container),
        ]:
            yield f"{where}.{problem}"
    yield from circles(named)


def whole_task(task, containers):
    names = [container.get("name") for container in containers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"containerDefinitions: two containers are named {name!r}"
    if not any(container.get("essential", True) for container in containers):
        yield "containerDefinitions: no container is essential"
    if on_fargate(task):
        if task.get("networkMode") != "awsvpc":
            yield "networkMode: Fargate wants awsvpc"
        for size in ("cpu", "memory"):
            if size not in task:
                yield f"{size}: Fargate wants it for the task"
    for size in ("cpu", "memory"):
        # The task's may also be written "1 vCPU", "2 GB", which nothing here adds up.
        if not task.get(size, "").isdecimal():
            continue
        used = sum(container.get(size, 0) for container in containers)
        if used > int(task[size]):
            yield f"{size}: the task has {task[size]}, its containers want {used}"
    listening = {}
    for container in containers:
        for mapping in container.get("portMappings", []):
            port = (mapping.get("containerPort"), mapping.get("protocol", "tcp"))
            other = listening.setdefault(port, container)
            if other is not container and task.get("networkMode") in ("awsvpc", "host"):
                yield f"containerDefinitions: {other.get('name')} and {container.get('name')} both publish {port[0]}"


def references(task, container, named):
    for dependency in container.get("dependsOn", []):
        name, condition = dependency["containerName"], dependency["condition"]
        if name not in named:
            yield f"dependsOn: there is no container {name!r}"
            continue
        if condition == "HEALTHY" and "healthCheck" not in named[name]:
            yield f"dependsOn: {name} is to be HEALTHY, but has no healthCheck"
        if condition in ("COMPLETE", "SUCCESS") and named[name].get("essential", True):
            yield f"dependsOn: {name} is to be {condition}, but is essential: the task would end with it"
    volumes = {volume.get("name") for volume in task.get("volumes", [])}
    for mount in container.get("mountPoints", []):
        if mount.get("sourceVolume") not in volumes:
            yield f"mountPoints: there is no volume {mount.get('sourceVolume')!r}"
    for source in container.get("volumesFrom", []):
        if source.get("sourceContainer") not in named:
            yield f"volumesFrom: there is no container {source.get('sourceContainer')!r}"
    if container.get("links") and task.get("networkMode", "bridge") != "bridge":
        yield "links: only in bridge mode"
    for link in container.get("links", []):
        if link.split(":")[0] not in named:
            yield f"links: there is no container {link.split(':')[0]!r}"


def times(task, container):
    if on_fargate(task):
        for name in ("startTimeout", "stopTimeout"):
            yield from outside(name, container.get(name), FARGATE_STOP)
    check = container.get("healthCheck", {})
    for name, bounds in HEALTH_CHECK.items():
        yield from outside(f"healthCheck.{name}", check.get(name), bounds)
    if check and check["command"][:1] not in (["CMD"], ["CMD-SHELL"], ["NONE"]):
        yield f"healthCheck.command: begins with {check['command'][:1]}, not with CMD or CMD-SHELL"
    if {"memory", "memoryReservation"} <= container.keys() and container["memoryReservation"] > container["memory"]:
        yield "memoryReservation: above memory"


def ports(task, container):
    for mapping in container.get("portMappings", []):
        port, on_host = mapping.get("containerPort"), mapping.get("hostPort")
        yield from outside("portMappings.containerPort", port, (1, 65535))
        if task.get("networkMode") in ("awsvpc", "host") and on_host not in (None, port):
            yield f"portMappings.hostPort: {on_host} isn't the containerPort, {port}"
        if "name" in mapping and not PORT_NAME.fullmatch(mapping["name"]):
            yield f"portMappings.name: {mapping['name']!r} isn't lower-case letters, digits, _ and -"
        if "appProtocol" in mapping and "name" not in mapping:
            yield "portMappings.appProtocol: without a name nothing reads it"


def logs(task, container):
    log = container.get("logConfiguration", {})
    if log.get("logDriver") == "awslogs" and on_fargate(task):
        if "executionRoleArn" not in task:
            yield "logConfiguration: awslogs on Fargate wants an executionRoleArn"
        if "awslogs-stream-prefix" not in log.get("options", {}):
            yield "logConfiguration: awslogs on Fargate wants an awslogs-stream-prefix"
    if container.get("secrets") and "executionRoleArn" not in task:
        yield "secrets: who reads them? There is no executionRoleArn"


def circles(named):
    def reaches(name, goal, seen):
        following = {dependency["containerName"] for dependency in named.get(name, {}).get("dependsOn", [])} - seen
        return goal in following or any(reaches(other, goal, seen | following) for other in following)

    for name in named:
        if reaches(name, name, set()):
            yield f"dependsOn: {name} waits for itself"


def on_fargate(task):
    return "FARGATE" in task.get("requiresCompatibilities", [])


def outside(name, value, bounds):
    if value is not None and not bounds[0] <= value <= bounds[1]:
        yield f"{name}: {value} isn't within {bounds[0]} and {bounds[1]}"
