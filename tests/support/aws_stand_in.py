"""AWS on this machine, for a deploy from beginning to end: ``python -m tests.support.aws_stand_in --port N``.

It is moto's server. What its CloudFormation does not know is left out by name, and with it what refers to it; a test
keeps the list true. Its own cfn-lint takes a hint of osls's redundancy for an error, so it is left to our own check.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import moto.server
from moto.cloudformation import models, responses
from moto.cloudformation.utils import get_stack_from_s3_url, validate_template_cfn_lint

LEFT_OUT_TYPES = (
    "AWS::S3::BucketPolicy",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::ApiGatewayV2::Api",
    "AWS::ApiGatewayV2::Stage",
    "AWS::ApiGatewayV2::Integration",
    "AWS::ApiGatewayV2::Route",
    "AWS::CloudWatch::Alarm",
    "AWS::CloudWatch::Dashboard",
)


def without_unknown(template: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The template without what moto lacks, and the logical ids of what that leaves out."""
    resources: dict[str, Any] = template["Resources"]
    gone = {name for name, resource in resources.items() if resource["Type"] in LEFT_OUT_TYPES}
    refers = re.compile(rf'"(?:Ref|Fn::GetAtt)": \[?"(?:{"|".join(sorted(gone))})"')
    gone |= {name for name, resource in resources.items() if refers.search(json.dumps(resource))}
    outputs = template.get("Outputs", {})
    return {
        **template,
        "Resources": {name: resource for name, resource in resources.items() if name not in gone},
        "Outputs": {name: output for name, output in outputs.items() if not refers.search(json.dumps(output))},
    }, gone


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.aws_stand_in", description=__doc__)
    parser.add_argument("--port", type=int, required=True)

    def read_template(template_url: str, account_id: str, partition: str) -> str:
        return json.dumps(without_unknown(json.loads(get_stack_from_s3_url(template_url, account_id, partition)))[0])

    def find_nothing(_template: str) -> list[Any]:
        return []

    for module in (models, responses):
        setattr(module, get_stack_from_s3_url.__name__, read_template)
    setattr(models, validate_template_cfn_lint.__name__, find_nothing)
    moto.server.main(["-H", "127.0.0.1", "-p", str(parser.parse_args().port)])


if __name__ == "__main__":
    main()
