variables {
  part   = "agent"
  config = "{\"node_name\": \"web-1\"}"
  secret = "/hawser/demo/join/web-1"

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

run "quotes_in_the_secrets_name_are_refused" {
  command = plan

  variables {
    secret = "a'; reboot; '"
  }

  expect_failures = [var.secret]
}

run "what_ec2_would_refuse_is_refused" {
  command = plan

  variables {
    before_start = join("\n", [for number in range(1000) : "echo line ${number} is too much"])
  }

  expect_failures = [output.text]
}
