variables {
  part   = "agent"
  config = "{\"node_name\": \"web-1\"}"
  pin    = { region = "eu-central-1", parameter = "/hawser/demo/server-pin" }

  install = {
    url    = "https://downloads.example/hawser"
    sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
  }
}

run "a_binary_comes_with_the_units" {
  command = plan

  assert {
    condition     = strcontains(output.text, "install -m 755 \"$work/hawser\" /usr/bin/hawser") && strcontains(output.text, "ExecStart=/usr/bin/hawser agent --config-dir /etc/hawser/agent.d")
    error_message = "The binary and its unit are installed."
  }

  assert {
    condition     = strcontains(output.text, "sha256sum --check")
    error_message = "What was downloaded is compared with what was agreed on."
  }
}

run "a_package_brings_its_own" {
  command = plan

  variables {
    install = {
      url    = "https://downloads.example/hawser.deb"
      sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
    }
  }

  assert {
    condition     = strcontains(output.text, "dpkg --install") && !strcontains(output.text, "[Service]")
    error_message = "A package is installed by dpkg and brings the units."
  }
}

run "plain_http_is_refused" {
  command = plan

  variables {
    install = {
      url    = "http://downloads.example/hawser"
      sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
    }
  }

  expect_failures = [var.install]
}

run "a_download_without_a_hash_is_refused" {
  command = plan

  variables {
    install = {
      url    = "https://downloads.example/hawser"
      sha256 = ""
    }
  }

  expect_failures = [var.install]
}

run "instances_that_share_a_script_are_named_by_their_ids" {
  command = plan

  variables {
    node_name_prefix = "web-"
  }

  assert {
    condition     = strcontains(output.text, "printf '{\"node_name\": \"%s%s\"}\\n' 'web-' \"$(about instance-id)\"")
    error_message = "The name is made of the prefix and the instance's id."
  }
}

run "an_agent_waits_for_the_pin_and_sees_no_key" {
  command = plan

  assert {
    condition     = strcontains(output.text, "wait_for") && strcontains(output.text, "--name '/hawser/demo/server-pin'")
    error_message = "The pin is waited for."
  }

  assert {
    condition     = !strcontains(output.text, "secretsmanager") && !strcontains(output.text, "put-parameter")
    error_message = "An agent asks for no key and publishes nothing."
  }
}

run "a_server_needs_its_key_and_its_allow_list" {
  command = plan

  variables {
    part = "server"
  }

  expect_failures = [var.operator_key_secret, var.allow_list_parameter]
}

run "quotes_in_names_are_refused" {
  command = plan

  variables {
    pin                 = { region = "eu-central-1", parameter = "a'; reboot; '" }
    operator_key_secret = "a'; reboot; '"
    node_name_prefix    = "a'; reboot; '"
  }

  expect_failures = [var.pin, var.operator_key_secret, var.node_name_prefix]
}

run "what_ec2_would_refuse_is_refused" {
  command = plan

  variables {
    before_start = join("\n", [for number in range(1000) : "echo line ${number} is too much"])
  }

  expect_failures = [output.text]
}
