"""Nothing is spoken but what has a name, and both ends of it are there."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from infra.rendered import Object, Pod, Rendered, called

# every way of a byte into a pod or out of it, and what it is for
FLOWS = {
    "dns": "every pod asks for names",
    "serving-clients": "callers ask the endpoint",
    "serving-prometheus": "Prometheus reads the endpoint's metrics",
    "serving-mlflow": "the endpoint asks for champions",
    "serving-s3": "the endpoint fetches models and brings feedback",
    "mlflow-clients": "the endpoint and runs of the pipeline ask MLflow",
    "mlflow-postgres": "MLflow keeps its records",
    "mlflow-s3": "MLflow keeps its artifacts",
    "pipeline-mlflow": "runs of the pipeline log and register",
    "pipeline-s3": "runs of the pipeline fetch and publish",
    "pipeline-kubeflow": "KFP's half of a pod talks to KFP",
    "pipeline-kubernetes": "Argo's half of a pod talks to Kubernetes",
    "pipeline-hub": "runs of the pipeline fetch pairs and backbones from the hub",
    "train-job-s3": "TrainJobs fetch and publish",
    "train-job-hub": "TrainJobs fetch pairs and backbones from the hub",
    "train-job-peers": "pods of a TrainJob train one model together",
    "train-job-clients": "and hear each other",
    "postgres-clients": "MLflow asks the database inside the namespace",
    "seaweedfs-clients": "all of them use the S3 inside the namespace",
}
# what the peers outside a rendering are called by: namespaces of the cluster, the label of callers', and of pods that Argo and
# Kubeflow Trainer make
_NAMESPACES = ({"kubernetes.io/metadata.name": name} for name in ("kube-system", "kubeflow", "monitoring"))
_OUTSIDE = (*_NAMESPACES, {"conlst-client": "true"})
_OF_A_RUN = {"matchExpressions": [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]}
_OF_A_TRAIN_JOB = {"matchLabels": {"app.kubernetes.io/name": "conlst-train-job"}}
_MADE_ELSEWHERE = (_OF_A_RUN, _OF_A_TRAIN_JOB)
# an address block that holds more than a private network is as good as none; one for the internet must leave private ones out
_WIDEST = 12
_TO_THE_INTERNET = ("pipeline-hub", "train-job-hub")
_PRIVATE = {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}


@dataclass(frozen=True)
class _Rule:
    """One rule of a policy: ``peers`` may be reached, or may reach, by ``ports``."""

    policy: Object
    direction: str
    peers: list[Object]
    ports: list[Object]

    @property
    def subject(self) -> Object:
        selector: Object = self.policy["spec"]["podSelector"]
        return selector


def namespace_is_closed(rendered: Rendered) -> Iterator[str]:
    """There is a policy that takes every pod and lets nothing through either way; the others open it."""
    closed = [policy for policy in rendered.of("NetworkPolicy") if policy["metadata"]["name"] == "deny"]
    if not any(_denies_all(policy["spec"]) for policy in closed):
        yield "NetworkPolicy/deny: must take every pod (podSelector: {}), both policyTypes, and have no rule"


def flows_are_named(rendered: Rendered) -> Iterator[str]:
    """Every other policy is a flow of the table, with a direction and rules for it."""
    for policy in rendered.of("NetworkPolicy"):
        name = policy["metadata"]["name"]
        if name == "deny":
            continue
        if name not in FLOWS:
            yield f"{called(policy)}: is no flow that infra/policies/network.py names"
        types = policy["spec"].get("policyTypes", [])
        if len(types) != 1 or policy["spec"].keys() != {"podSelector", "policyTypes", types[0].lower()}:
            yield f"{called(policy)}: must have one of Ingress and Egress in policyTypes, and rules for it"


def flows_name_peers_and_ports(rendered: Rendered) -> Iterator[str]:
    """A rule without peers, with an empty selector, with many addresses or ports, or without ports opens far too much."""
    for rule in _rules(rendered):
        where = f"{called(rule.policy)}: {rule.direction}"
        if not rule.peers or not rule.ports or not all("port" in port for port in rule.ports):
            yield f"{where} must name its peers and its ports"
        if any("endPort" in port for port in rule.ports) and rule.peers != [{"podSelector": rule.subject}]:
            yield f"{where} opens a range of ports, which only pods of one kind may have among each other"
        for peer in rule.peers:
            if "ipBlock" in peer:
                yield from (f"{where} {message}" for message in _too_wide(rule, peer["ipBlock"]))
            elif not peer or not all(peer.values()):
                yield f"{where} has a peer with an empty selector, which is everybody"


def peers_exist(rendered: Rendered) -> Iterator[str]:
    """Whom a policy is about and whom it names are rendered, or known from outside; so are the ports."""
    for rule in _rules(rendered):
        where = f"{called(rule.policy)}: {rule.direction}"
        subjects = rendered.selected(rule.subject)
        if rule.subject and not subjects and rule.subject not in _MADE_ELSEWHERE:
            yield f"{where} is about no pod"
        if rule.direction == "Ingress":
            yield from (f"{where}: {message}" for message in _without(rule.ports, subjects))
        for peer in rule.peers:
            if "ipBlock" in peer:
                continue
            if "namespaceSelector" in peer:
                if peer["namespaceSelector"].get("matchLabels") not in _OUTSIDE:
                    yield f"{where} is with a namespace that infra/policies/network.py does not know: {peer}"
                continue
            pods = rendered.selected(peer["podSelector"])
            if not pods and peer["podSelector"] not in _MADE_ELSEWHERE:
                yield f"{where} is with no pod: {peer['podSelector']}"
            if rule.direction == "Egress":
                yield from (f"{where}: {message}" for message in _without(rule.ports, pods))


def flows_have_both_ends(rendered: Rendered) -> Iterator[str]:
    """In a closed namespace a pod that may speak to another must be heard by it, and the other way round."""
    rules = [rule for rule in _rules(rendered) if rule.policy["metadata"]["name"] != "dns"]
    inside = [(rule, peer["podSelector"]) for rule in rules for peer in rule.peers if peer.keys() == {"podSelector"}]
    for rule, peer in inside:
        answers = [(other, selector) for other, selector in inside if other.direction != rule.direction]
        if not any(selector == rule.subject and other.subject == peer for other, selector in answers):
            yield f"{called(rule.policy)}: {rule.direction} has no policy for its other end, {peer}"


def _rules(rendered: Rendered) -> Iterator[_Rule]:
    for policy in rendered.of("NetworkPolicy"):
        for direction, key in (("Ingress", "from"), ("Egress", "to")):
            for rule in policy["spec"].get(direction.lower()) or ():
                yield _Rule(policy, direction, rule.get(key) or [], rule.get("ports") or [])


def _denies_all(spec: Object) -> bool:
    return (
        spec.keys() == {"podSelector", "policyTypes"}
        and not spec["podSelector"]
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
    )


def _too_wide(rule: _Rule, block: Object) -> Iterator[str]:
    if ip_network(block["cidr"]).prefixlen >= _WIDEST:
        return
    if rule.policy["metadata"]["name"] not in _TO_THE_INTERNET:
        yield f"{block['cidr']} is no private network; name the one that is meant"
    elif held := sorted(_PRIVATE - set(block.get("except", ()))):
        yield f"{block['cidr']} holds private networks; add to its except: {', '.join(held)}"


def _without(ports: list[Object], pods: list[Pod]) -> Iterator[str]:
    for pod in pods:
        for port in ports:
            # ports of a range are picked by programs; no manifest names them
            if "endPort" not in port and port.get("port") not in (*pod.ports, *pod.ports.values()):
                yield f"{pod.owner} has no port {port.get('port')}"
