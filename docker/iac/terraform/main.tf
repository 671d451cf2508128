# hostward as the second container of a Fargate task, in Terraform. Checked by `terraform fmt -check` where there is a
# terraform, and by tests/iac/validate.py, which reads the containers as ECS would. Not checked: the resource against
# the AWS provider (`terraform validate`), because that needs the provider from Terraform's registry.
# In aws_ecs_service, load_balancer.container_name must be "hostward" and container_port 8080.
locals {
  log_options = {
    awslogs-group         = "/ecs/my-app"
    awslogs-region        = "eu-west-1"
    awslogs-stream-prefix = "my-app" # the container's name is added
    mode                  = "non-blocking"
    max-buffer-size       = "10m"
  }
  containers = [
    { # as it was, without its portMappings
      name             = "app"
      image            = "my-app:1.0"
      essential        = true
      cpu              = 448
      memory           = 896
      stopTimeout      = 60
      logConfiguration = { logDriver = "awslogs", options = local.log_options }
    },
    {
      name              = "hostward"
      image             = "hostward:0.1.0"
      essential         = true
      cpu               = 64
      memoryReservation = 32
      memory            = 128
      dependsOn         = [{ containerName = "app", condition = "START" }]
      portMappings      = [{ name = "web", containerPort = 8080, protocol = "tcp", appProtocol = "http" }]
      environment = [
        { name = "HOSTWARD_ALLOWED_HOSTS", value = "www.example.com" },
        { name = "HOSTWARD_UPSTREAM", value = "http://127.0.0.1:8000" },
      ]
      healthCheck = {
        command     = ["CMD", "/hostward", "healthcheck"]
        interval    = 10
        timeout     = 5
        retries     = 3
        startPeriod = 10
      }
      stopTimeout            = 60
      user                   = "65532:65532"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] }, initProcessEnabled = false }
      ulimits                = [{ name = "nofile", softLimit = 65535, hardLimit = 65535 }]
      logConfiguration       = { logDriver = "awslogs", options = local.log_options }
    },
  ]
}

resource "aws_ecs_task_definition" "my_app" {
  family                   = "my-app"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = "512"
  memory                   = "1024"
  execution_role_arn       = "arn:aws:iam::123456789012:role/ecsTaskExecutionRole"
  container_definitions    = jsonencode(local.containers)

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }
}
