"""What every rendering must hold to. A policy takes a rendering and says of each object that breaks it what is wrong."""

from collections.abc import Callable, Iterable

from infra.policies import access, availability, network, pods
from infra.rendered import Rendered

Policy = Callable[[Rendered], Iterable[str]]

POLICIES: tuple[Policy, ...] = (
    pods.runs_as_non_root,
    pods.root_is_read_only,
    pods.has_no_capabilities,
    pods.has_the_default_seccomp_profile,
    pods.shares_nothing_with_its_node,
    pods.image_is_named_by_digest,
    pods.resources_are_requested_and_limited,
    pods.has_probes,
    pods.has_what_it_refers_to,
    access.no_secret_is_in_clear,
    access.secrets_can_be_rotated,
    access.no_token_unless_needed,
    access.roles_name_what_they_open,
    access.namespace_is_restricted,
    availability.services_select_pods,
    availability.budgets_leave_room_to_drain,
    availability.autoscalers_have_the_number,
    network.namespace_is_closed,
    network.flows_are_named,
    network.flows_name_peers_and_ports,
    network.peers_exist,
    network.flows_have_both_ends,
)


def broken(rendered: Rendered) -> list[str]:
    """Every break of a policy, as ``policy: object: what is wrong``."""
    return [f"{policy.__name__}: {message}" for policy in POLICIES for message in policy(rendered)]
