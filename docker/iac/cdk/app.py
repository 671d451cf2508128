"""hostward as the second container of a Fargate task, in the AWS CDK for Python. Checked: it is run, which
synthesises the template, and tests/iac/validate.py and cfn-lint read that. Needs aws-cdk-lib and Node.js."""

import aws_cdk as cdk
from aws_cdk import aws_ecs as ecs, aws_iam as iam, aws_logs as logs

app = cdk.App()
stack = cdk.Stack(app, "MyApp")
log_group = logs.LogGroup.from_log_group_name(stack, "Logs", "/ecs/my-app")


def log_driver(prefix):
    return ecs.LogDrivers.aws_logs(
        log_group=log_group,
        stream_prefix=prefix,
        mode=ecs.AwsLogDriverMode.NON_BLOCKING,
        max_buffer_size=cdk.Size.mebibytes(10),
    )


task = ecs.FargateTaskDefinition(
    stack,
    "Task",
    family="my-app",
    cpu=512,
    memory_limit_mib=1024,
    runtime_platform=ecs.RuntimePlatform(
        operating_system_family=ecs.OperatingSystemFamily.LINUX, cpu_architecture=ecs.CpuArchitecture.X86_64
    ),
    execution_role=iam.Role.from_role_name(stack, "ExecutionRole", "ecsTaskExecutionRole"),
)

# As it was, without its port mappings.
my_app = task.add_container(
    "app",
    image=ecs.ContainerImage.from_registry("my-app:1.0"),
    cpu=448,
    memory_limit_mib=896,
    stop_timeout=cdk.Duration.seconds(60),
    logging=log_driver("app"),
)

restricted = ecs.LinuxParameters(stack, "Restricted", init_process_enabled=False)
restricted.drop_capabilities(ecs.Capability.ALL)
hostward = task.add_container(
    "hostward",
    image=ecs.ContainerImage.from_registry("hostward:0.1.0"),
    cpu=64,
    memory_reservation_mib=32,
    memory_limit_mib=128,
    port_mappings=[
        ecs.PortMapping(
            name="web", container_port=8080, protocol=ecs.Protocol.TCP, app_protocol=ecs.AppProtocol.http
        )
    ],
    environment={
        "HOSTWARD_ALLOWED_HOSTS": "www.example.com",
        "HOSTWARD_UPSTREAM": "http://127.0.0.1:8000",
    },
    health_check=ecs.HealthCheck(
        command=["CMD", "/hostward", "healthcheck"],
        interval=cdk.Duration.seconds(10),
        timeout=cdk.Duration.seconds(5),
        retries=3,
        start_period=cdk.Duration.seconds(10),
    ),
    stop_timeout=cdk.Duration.seconds(60),
    user="65532:65532",
    readonly_root_filesystem=True,
    linux_parameters=restricted,
    ulimits=[ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=65535, hard_limit=65535)],
    logging=log_driver("hostward"),
)
hostward.add_container_dependencies(
    ecs.ContainerDependency(container=my_app, condition=ecs.ContainerDependencyCondition.START)
)
# Else a service's load balancer gets the container that was added first: the app, past hostward.
task.default_container = hostward

app.synth()
