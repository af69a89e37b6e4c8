"""Prepares moto for tests/aws, then turns its checks of signatures on; prints what tests need."""

import json
import sys
import urllib.request

import boto3

endpoint, address = sys.argv[1:]
REGION = "eu-west-1"


def client(service, **keys):
    keys = keys or {"aws_access_key_id": "setup", "aws_secret_access_key": "setup"}
    return boto3.client(service, region_name=REGION, endpoint_url=endpoint, **keys)


def reset(count):
    post("reset-auth", str(count))


def post(path, text):
    plain = {"Content-Type": "text/plain"}
    url = f"{endpoint}/moto-api/{path}"
    urllib.request.urlopen(urllib.request.Request(url, text.encode(), plain)).read()


reset(1_000_000)
post("reset", "")
iam, sts, ec2, ecs = (client(name) for name in ("iam", "sts", "ec2", "ecs"))

allow = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": ["ec2:DescribeInstances", "ecs:ListTasks", "ecs:DescribeTasks"],
            "Resource": "*",
        }
    ],
}
policy = iam.create_policy(PolicyName="find", PolicyDocument=json.dumps(allow))["Policy"]["Arn"]
roles = {}
for name in ("web", "other", "web-but-not"):
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]
    if name == "web":
        iam.attach_role_policy(RoleName=name, PolicyArn=policy)
    # The session is named after a role that may join: that must count for nothing.
    session = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="web")
    roles[name] = session["Credentials"]
# The same name in an account that is not the servers'.
foreign = sts.assume_role(RoleArn="arn:aws:iam::999999999999:role/web", RoleSessionName="web")
roles["foreign"] = foreign["Credentials"]
iam.create_user(UserName="web")
user = iam.create_access_key(UserName="web")["AccessKey"]

network = ".".join(address.split(".")[:3])
vpc = ec2.create_vpc(CidrBlock=f"{network}.0/24")["Vpc"]["VpcId"]
subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"{network}.0/24")["Subnet"]["SubnetId"]
image = ec2.describe_images()["Images"][0]["ImageId"]


def instance(host, value):
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "hawser", "Value": value}]}]
    made = ec2.run_instances(
        ImageId=image, MinCount=1, MaxCount=1, SubnetId=subnet,
        PrivateIpAddress=f"{network}.{host}", TagSpecifications=tags,
    )
    return made["Instances"][0]["InstanceId"]


instance(address.split(".")[3], "a server & more")
instance("250", "something else")
stopped = instance("251", "a server & more")
ec2.stop_instances(InstanceIds=[stopped])

reset(0)
print(
    json.dumps(
        {
            "account": "123456789012",
            "region": REGION,
            "roles": {
                name: [keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"]]
                for name, keys in roles.items()
            },
            "user": [user["AccessKeyId"], user["SecretAccessKey"]],
        }
    )
)
