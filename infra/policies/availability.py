"""Services find their pods; rollouts, drains and autoscaling do not fight one another."""

from collections.abc import Iterator

from infra.rendered import Object, Pod, Rendered, called


def services_select_pods(rendered: Rendered) -> Iterator[str]:
    """And a port that those have."""
    for service in rendered.of("Service"):
        pods = rendered.selected({"matchLabels": service["spec"].get("selector", {})}) if service["spec"].get("selector") else []
        if not pods:
            yield f"{called(service)}: selects no pod"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if any(target not in pod.ports and target not in pod.ports.values() for pod in pods):
                yield f"{called(service)}: its pods have no port {target}"
    for pod in rendered.pods():
        selector = pod.workload["spec"].get("selector")
        if selector is not None and not selector.get("matchLabels", {}).items() <= pod.labels.items():
            yield f"{pod.owner}: does not select the pods that it makes"
        if pod.workload["kind"] == "StatefulSet" and rendered.named("Service", pod.workload["spec"]["serviceName"]) is None:
            yield f"{pod.owner}: there is no Service {pod.workload['spec']['serviceName']}"


def budgets_leave_room_to_drain(rendered: Rendered) -> Iterator[str]:
    """A budget asks for fewer pods than there are at least; workloads of several pods have one."""
    guarded: set[str] = set()
    for budget in rendered.of("PodDisruptionBudget"):
        pods = rendered.selected(budget["spec"]["selector"])
        if not pods:
            yield f"{called(budget)}: selects no pod"
        guarded |= {pod.owner for pod in pods}
        wanted = budget["spec"].get("minAvailable")
        for pod in pods:
            if not isinstance(wanted, int) or not 0 < wanted < _least(rendered, pod):
                yield f"{called(budget)}: minAvailable must be from 1 to fewer than the {_least(rendered, pod)} of {pod.owner}"
    for pod in rendered.pods():
        if _least(rendered, pod) > 1 and pod.owner not in guarded:
            yield f"{pod.owner}: has several pods and no PodDisruptionBudget"


def autoscalers_have_the_number(rendered: Rendered) -> Iterator[str]:
    """What is scaled is there, says no number itself, and has the request that use is measured against."""
    for scaler in rendered.of("HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        target = rendered.named(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"{called(scaler)}: there is no {spec['scaleTargetRef']['kind']} {spec['scaleTargetRef']['name']}"
            continue
        if "replicas" in target["spec"]:
            yield f"{called(target)}: says replicas, so that applying it again undoes what {called(scaler)} did"
        if not 1 < spec.get("minReplicas", 1) < spec["maxReplicas"]:
            yield f"{called(scaler)}: minReplicas must be from 2 to fewer than maxReplicas"
        measured = {metric["resource"]["name"] for metric in spec.get("metrics", ()) if metric["type"] == "Resource"}
        for container in target["spec"]["template"]["spec"]["containers"]:
            if missing := sorted(measured - container.get("resources", {}).get("requests", {}).keys()):
                yield f"{called(scaler)}: {called(target)} requests no {', '.join(missing)} to measure against"


def _least(rendered: Rendered, pod: Pod) -> int:
    for scaler in rendered.of("HorizontalPodAutoscaler"):
        if _is_target(scaler, pod.workload):
            return int(scaler["spec"].get("minReplicas", 1))
    return int(pod.workload["spec"].get("replicas", 1))


def _is_target(scaler: Object, workload: Object) -> bool:
    reference = scaler["spec"]["scaleTargetRef"]
    return (reference["kind"], reference["name"]) == (workload["kind"], workload["metadata"]["name"])
