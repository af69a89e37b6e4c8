variables {
  node_name  = "web-1"
  retry_join = ["servers.example"]
}

run "what_is_not_said_is_not_written" {
  command = plan

  variables {
    services = [
      { name = "plain", port = 80, mesh = false },
      { name = "mail", id = "mail-1", port = 25, upstreams = [{ destination_name = "db", local_bind_port = 5432, local_bind_address = "127.0.0.2" }] },
    ]
  }

  assert {
    condition = jsondecode(output.json).services == [
      { name = "plain", port = 80, protocol = "tcp", tags = [], meta = {}, checks = [] },
      {
        name    = "mail", id = "mail-1", port = 25, protocol = "tcp", tags = [], meta = {}, checks = []
        connect = { sidecar_service = { proxy = { upstreams = [{ destination_name = "db", local_bind_port = 5432, local_bind_address = "127.0.0.2" }] } } }
      },
    ]
    error_message = "The services are rendered otherwise."
  }
}

run "the_agent_joins_by_its_role_and_tasks_name_themselves" {
  command = plan

  variables {
    node_name = null
  }

  assert {
    condition     = jsondecode(output.json).join_method == "aws-iam" && !can(jsondecode(output.json).node_name)
    error_message = "The role joins, and no name is written."
  }
}

run "upstreams_need_the_mesh" {
  command = plan

  variables {
    services = [{ name = "web", port = 80, mesh = false, upstreams = [{ destination_name = "db", local_bind_port = 5432 }] }]
  }

  expect_failures = [var.services]
}

run "one_id_is_one_service" {
  command = plan

  variables {
    services = [{ name = "web", port = 80 }, { name = "web", port = 81 }]
  }

  expect_failures = [var.services]
}

run "a_name_that_is_no_label_is_refused" {
  command = plan

  variables {
    services = [{ name = "Web_1", port = 80 }]
  }

  expect_failures = [var.services]
}
