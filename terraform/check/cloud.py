#!/usr/bin/env python3
"""The AWS of boot.py: moto, which checks signatures and what roles may do, and metadata services.

    cloud.py PLAN.json

PLAN.json says what Terraform would have made: roles with their policies, parameters, the operator
key's secret, the program's bucket, instances and tasks with their addresses. Prints one line of JSON
once it serves: the id of each instance by its name. Listens on port 5000 (every API of AWS) and, told
apart by who asks, on port 80 (the metadata of instances and of tasks). Each line of its standard
input, a JSON object, are parameters or the secret to put; it ends with its standard input.
"""

import datetime
import http.server
import json
import os
import pathlib
import sys
import threading
import urllib.request

# Signatures count once everything is made.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "1000000"

import boto3  # noqa: E402 the variable comes first
from moto.server import ThreadedMotoServer  # noqa: E402

PORT = 5000
ENDPOINT = f"http://127.0.0.1:{PORT}"
OPERATOR = "operator"
HOURS = datetime.timedelta(hours=6)


class Cloud:
    def __init__(self, plan):
        self.plan, self.region = plan, plan["region"]
        self.by_address, self.tasks, self.keys = {}, {}, {}

    def client(self, service, role=None):
        keys = self.keys.get(role, {"AccessKeyId": "setup", "SecretAccessKey": "setup"})
        return boto3.client(service, region_name=self.region, endpoint_url=ENDPOINT,
                            aws_access_key_id=keys["AccessKeyId"],
                            aws_secret_access_key=keys["SecretAccessKey"],
                            aws_session_token=keys.get("Token"))

    def fill(self):
        iam, sts, ssm = self.client("iam"), self.client("sts"), self.client("ssm")
        operator = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Resource": "*",
             "Action": ["ssm:PutParameter", "secretsmanager:PutSecretValue"]}]}
        given = {**self.plan["roles"], OPERATOR: [json.dumps(operator)]}
        for name, policies in given.items():
            role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]
            for at, policy in enumerate(policies):
                iam.put_role_policy(RoleName=name, PolicyName=f"p{at}", PolicyDocument=policy)
            keys = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="boot")["Credentials"]
            self.keys[name] = {
                "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": keys["AccessKeyId"],
                "SecretAccessKey": keys["SecretAccessKey"], "Token": keys["SessionToken"],
                "LastUpdated": stamp(-HOURS), "Expiration": stamp(HOURS),
            }
        self.put(ssm, self.plan["parameters"])
        secret = pathlib.Path(self.plan["secret"]).read_text().strip()
        self.client("secretsmanager").create_secret(Name=self.plan["secret_name"], SecretString=secret)
        bucket, key = self.plan["program"]["bucket"], self.plan["program"]["key"]
        s3 = self.client("s3")
        s3.create_bucket(Bucket=bucket,
                         CreateBucketConfiguration={"LocationConstraint": self.region})
        s3.put_object(Bucket=bucket, Key=key,
                      Body=pathlib.Path(self.plan["program"]["file"]).read_bytes())
        self.launch()
        for task in self.plan["tasks"]:
            self.tasks[task["id"]] = task

    def put(self, ssm, parameters):
        for name, value in parameters.items():
            ssm.put_parameter(Name=name, Value=value, Type="String", Overwrite=True)

    def launch(self):
        ec2 = self.client("ec2")
        network = self.plan["network"]
        vpc = ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=network)["Subnet"]["SubnetId"]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for one in self.plan["instances"]:
            tags = [{"Key": key, "Value": value} for key, value in one["tags"].items()]
            made = ec2.run_instances(
                ImageId=image, MinCount=1, MaxCount=1, SubnetId=subnet,
                PrivateIpAddress=one["address"],
                TagSpecifications=[{"ResourceType": "instance", "Tags": tags}])
            one["id"] = made["Instances"][0]["InstanceId"]
            self.by_address[one["address"]] = one

    def instance(self, address, path):
        """What the instance's metadata service answers."""
        one = self.by_address.get(address)
        base = "/latest/meta-data/"
        if one is None or not path.startswith(base):
            return None
        roles = "iam/security-credentials/"
        return {
            "instance-id": one["id"],
            "placement/region": self.region,
            "placement/availability-zone": f"{self.region}a",
            roles: one["role"],
            roles + one["role"]: json.dumps(self.keys[one["role"]]),
        }.get(path.removeprefix(base))

    def task(self, path):
        """What the task metadata endpoint and the container credentials endpoint answer."""
        parts = path.strip("/").split("/")
        if parts[:2] == ["v2", "credentials"] and len(parts) == 3:
            return json.dumps(self.keys[parts[2]]) if parts[2] in self.keys else None
        task = self.tasks.get(parts[1]) if len(parts) > 1 and parts[0] == "v4" else None
        if task is None:
            return None
        whole = metadata(task, self.region)
        return {2: json.dumps(whole["Containers"][0]), 3: json.dumps(whole)}.get(len(parts))


def metadata(task, region):
    networks = [{"NetworkMode": "awsvpc", "IPv4Addresses": [task["address"]]}]
    cluster = f"arn:aws:ecs:{region}:123456789012:cluster/apps"
    return {
        "Cluster": cluster, "TaskARN": cluster.replace("cluster/", "task/") + "/" + task["id"],
        "Family": task["family"], "Revision": "1", "AvailabilityZone": f"{region}b",
        "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
        "Containers": [
            {"Name": name, "Type": "NORMAL", "KnownStatus": "RUNNING", "Networks": networks}
            for name in task["containers"]
        ],
    }


def stamp(ahead):
    return (datetime.datetime.now(datetime.timezone.utc) + ahead).strftime("%Y-%m-%dT%H:%M:%SZ")


def handler(cloud):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def answer(self, body):
            self.send_response(200 if body is not None else 404)
            octets = (body or "").encode()
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            self.wfile.write(octets)

        def do_PUT(self):
            self.answer("a-session" if self.path == "/latest/api/token" else None)

        def do_GET(self):
            address = self.client_address[0]
            if not self.path.startswith("/latest/"):
                self.answer(cloud.task(self.path))
            elif self.headers.get("X-aws-ec2-metadata-token") != "a-session":
                self.send_error(401)  # version 1 is off
            else:
                self.answer(cloud.instance(address, self.path))

        def log_message(self, *_):
            pass

    return Metadata


def main():
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    moto = ThreadedMotoServer("0.0.0.0", PORT, verbose=False)
    moto.start()
    cloud = Cloud(plan)
    cloud.fill()
    plain = {"Content-Type": "text/plain"}
    reset = urllib.request.Request(f"{ENDPOINT}/moto-api/reset-auth", b"0", plain)
    urllib.request.urlopen(reset).read()
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 80), handler(cloud))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({one["name"]: one["id"] for one in plan["instances"]}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        cloud.put(cloud.client("ssm", OPERATOR), told.get("parameters", {}))
        if "secret" in told:
            cloud.client("secretsmanager", OPERATOR).put_secret_value(
                SecretId=plan["secret_name"], SecretString=told["secret"])
        print("put", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
