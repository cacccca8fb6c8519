"""The installed botocore's model of SageMaker: what is true about names, enums, patterns and limits."""

import functools

import botocore.session
from botocore.model import ServiceModel


@functools.cache
def sagemaker_model() -> ServiceModel:
    """The service model, read once."""
    return botocore.session.get_session().get_service_model("sagemaker")
