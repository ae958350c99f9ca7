{{/* Base name of the chart's objects. */}}
{{- define "gpu-provisioner.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" }}
{{- end }}

{{/*
Name of the chart's objects: the release, with the chart's name unless it is in there already. With what follows it no name of a Job
is longer than a label.
*/}}
{{- define "gpu-provisioner.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" }}
{{- else if contains (include "gpu-provisioner.name" .) .Release.Name }}
{{- .Release.Name | trunc 47 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gpu-provisioner.name" .) | trunc 47 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Stops helm where two ports are one, or a Service could not have the name of the chart's objects: (dict "root" $ "metrics" port "health" port). */}}
{{- define "gpu-provisioner.checkNameAndPorts" -}}
{{- $name := include "gpu-provisioner.fullname" .root }}
{{- if or (regexMatch "^[0-9]" $name) (contains "." $name) }}
{{- fail (printf "%q would be the name of a Service, which begins with a letter and has no dot: name the release otherwise, or set fullnameOverride" $name) }}
{{- end }}
{{- if eq (int .metrics) (int .health) }}
{{- fail (printf "%s and %s are both %d: the Pod needs a port for each" .metricsName .healthName (int .metrics)) }}
{{- end }}
{{- end }}

{{/* Labels that select the controller's Pods; they never change. */}}
{{- define "gpu-provisioner.selectorLabels" -}}
app.kubernetes.io/name: {{ include "gpu-provisioner.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of every object but hooks; those that the chart itself goes by win over the user's. */}}
{{- define "gpu-provisioner.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/part-of" "kaito"
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- merge (include "gpu-provisioner.selectorLabels" . | fromYaml) $own (default dict .Values.additionalLabels) | toYaml }}
{{- end }}

{{/* Labels and annotations of every object but hooks: (dict "root" $ "labels" map "annotations" map), the maps if it has its own. */}}
{{- define "gpu-provisioner.metadata" -}}
labels:
  {{- merge (include "gpu-provisioner.labels" .root | fromYaml) (default dict .labels) | toYaml | nindent 2 }}
{{- with merge (dict) (default dict .annotations) (default dict .root.Values.additionalAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* ServiceAccount of the controller; it is part of the identity's federated subject, so that it does not follow the release's name. */}}
{{- define "gpu-provisioner.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default "gpu-provisioner" .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels by which Kubernetes' own roles take the rules of a ClusterRole: (list "view" "edit"). */}}
{{- define "gpu-provisioner.aggregateTo" -}}
{{- range . }}
rbac.authorization.k8s.io/aggregate-to-{{ . }}: "true"
{{- end }}
{{- end }}

{{/* Name of the Lease, for the environment and the Role alike. */}}
{{- define "gpu-provisioner.leaseName" -}}
{{ include "gpu-provisioner.fullname" . }}-leader-election
{{- end }}

{{/*
A registry and the folder of images in it: (dict "name" "image.registry" "value" .Values.image.registry). Images have no capitals
and no empty folder, so these are mended; what no image can begin with stops helm.
*/}}
{{- define "gpu-provisioner.registry" -}}
{{- $given := default "" .value | toString }}
{{- $registry := $given | trim | trimSuffix "/" | lower }}
{{- if not $registry }}
{{- fail (printf "%s is empty: name the registry that holds the images; if it came from a variable of the shell, that one is not set" .name) }}
{{- end }}
{{- if not (regexMatch "^(\\[[0-9a-f:.]+\\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$" $registry) }}
{{- fail (printf "%s is %q: write host[:port][/folder] without https://, as registry.example.com/kaito; an IPv6 address stands in brackets" .name $given) }}
{{- end }}
{{- $registry }}
{{- end }}

{{/* An image, or a folder of images, in global.imageRegistry instead of its own registry: (dict "root" $ "image" "nvcr.io/nvidia/x"). */}}
{{- define "gpu-provisioner.mirrored" -}}
{{- $global := default dict .root.Values.global }}
{{- if $global.imageRegistry }}
{{- $registry := include "gpu-provisioner.registry" (dict "name" "global.imageRegistry" "value" $global.imageRegistry) }}
{{- $path := regexReplaceAll "^([^/]*[.:][^/]*|localhost)(/|$)" .image "" }}
{{- printf "%s/%s" $registry $path | trimSuffix "/" }}
{{- else }}
{{- .image }}
{{- end }}
{{- end }}

{{/* Registry and folder of this project's images. */}}
{{- define "gpu-provisioner.imageRegistry" -}}
{{- $registry := include "gpu-provisioner.registry" (dict "name" "image.registry" "value" .Values.image.registry) }}
{{- include "gpu-provisioner.mirrored" (dict "root" . "image" $registry) }}
{{- end }}

{{/* Stops helm at a value of upstream's chart that has another name here: (dict "root" $ "ours" (dict "path" "what to use")). */}}
{{- define "gpu-provisioner.refuseUpstreamValues" -}}
{{- range $path, $instead := .ours }}
{{- $place := $.root.Values }}
{{- $set := true }}
{{- range splitList "." $path }}
{{- $set = and $set (kindIs "map" $place) (hasKey (default dict $place) .) }}
{{- if $set }}
{{- $place = get $place . }}
{{- end }}
{{- end }}
{{- if $set }}
{{- fail (printf "the value %s of upstream's chart is not one of this chart; %s" $path $instead) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Stops helm at a text with a variable of the shell, as $LOCATION; $(LOCATION) is kubelet's: (dict "name" "x.y" "value" "text"). */}}
{{- define "gpu-provisioner.refuseVariable" -}}
{{- if and (kindIs "string" .value) (regexMatch "\\$\\{?[A-Za-z_]" (toString .value)) }}
{{- fail (printf "%s is %q: the variable was not replaced by its value" .name .value) }}
{{- end }}
{{- end }}

{{/*
Values that this chart cannot work with, each in a sentence. A setting that was given without a value, as by a variable of the shell
that is not set, is told here; settings that nobody gives may come from envFrom.
*/}}
{{- define "gpu-provisioner.checkValues" -}}
{{- include "gpu-provisioner.refuseUpstreamValues" (dict "root" . "ours" (dict
  "image.repository" "image.registry names the registry and the folder, controller.image.repository a whole repository"
  "image.pullPolicy" "imagePullPolicy says when nodes pull the image"
  "image.pullSecrets" "imagePullSecrets lists them as [{name}]"
  "webhook" "no webhook runs, leave it out"
  "settings.featureGates" "there is none, leave it out"
  "settings.batchMaxDuration" "claims are not batched, leave it out"
  "settings.batchIdleDuration" "claims are not batched, leave it out"
  "settings.azure.clusterEndpoint" "the cluster is found by its name, leave it out"
  "settings.azure.vmMemoryOverheadPercent" "nothing is computed from it, leave it out"
  "settings.azure.tags" "agentPool.tags are the tags of every agent pool"
  "controller.sidecarContainer" "no further container is added, leave it out"
  "controller.sidecarVolumeMounts" "no further container is added, leave it out"
)) }}
{{- $values := .Values }}
{{- include "gpu-provisioner.checkNameAndPorts" (dict "root" . "metrics" $values.controller.metrics.port "health" $values.controller.healthProbe.port
  "metricsName" "controller.metrics.port" "healthName" "controller.healthProbe.port") }}
{{- $own := dict }}
{{- range $values.controller.env }}
{{- if hasKey $own .name }}
{{- fail (printf "controller.env has %s twice: leave one of them out" .name) }}
{{- end }}
{{- $own = set $own .name (or .value .valueFrom) }}
{{- end }}
{{- $azure := default dict $values.settings.azure }}
{{- $identity := default dict $values.workloadIdentity }}
{{- $settings := list
  (list "settings.azure.clusterName" "AZURE_CLUSTER_NAME" $azure.clusterName (hasKey $azure "clusterName") true)
  (list "settings.azure.subscriptionId" "ARM_SUBSCRIPTION_ID" $azure.subscriptionId (hasKey $azure "subscriptionId") true)
  (list "settings.azure.resourceGroup" "ARM_RESOURCE_GROUP" $azure.resourceGroup (hasKey $azure "resourceGroup") true)
  (list "settings.azure.location" "LOCATION" $azure.location (hasKey $azure "location") true)
  (list "workloadIdentity.clientId" "AZURE_CLIENT_ID" $identity.clientId (hasKey $identity "clientId") (eq $values.deploymentMode "self-hosted"))
  (list "workloadIdentity.tenantId" "AZURE_TENANT_ID" $identity.tenantId (hasKey $identity "tenantId") false)
}}
{{- $bare := "alone, without blanks and line breaks" }}
{{- $shapes := dict
  "AZURE_CLUSTER_NAME" (list "^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$" (printf "the cluster's name %s" $bare))
  "ARM_SUBSCRIPTION_ID" (list "^[0-9A-Za-z-]+$" (printf "the subscription's id (az account show --query id) %s, not its name or path" $bare))
  "ARM_RESOURCE_GROUP" (list "^[\\pL\\pN_().-]+$" (printf "the resource group's name %s, not its path" $bare))
  "LOCATION" (list "^[A-Za-z0-9]+$" "the region's name as eastus, not the one that people read")
  "AZURE_CLIENT_ID" (list "^[0-9A-Za-z-]+$" (printf "the identity's clientId %s, not its resource id" $bare))
  "AZURE_TENANT_ID" (list "^[0-9A-Za-z.-]+$" (printf "the tenant's id %s" $bare))
}}
{{- $given := 0 }}
{{- range $settings }}
{{- if or (index . 2) (hasKey $own (index . 1)) }}
{{- $given = add1 $given }}
{{- end }}
{{- end }}
{{- $lacking := list }}
{{- range $settings }}
{{- include "gpu-provisioner.refuseVariable" (dict "name" (index . 0) "value" (index . 2)) }}
{{- $shape := get $shapes (index . 1) }}
{{- if and (index . 2) (not (regexMatch (index $shape 0) (index . 2))) }}
{{- fail (printf "%s is %q: write %s" (index . 0) (index . 2) (index $shape 1)) }}
{{- end }}
{{- if hasKey $own (index . 1) }}
{{- include "gpu-provisioner.refuseVariable" (dict "name" (printf "%s of controller.env" (index . 1)) "value" (get $own (index . 1))) }}
{{- end }}
{{- $inEnv := hasKey $own (index . 1) }}
{{- if and $inEnv (not (get $own (index . 1))) }}
{{- $lacking = append $lacking (printf "%s of controller.env" (index . 1)) }}
{{- else if not (or (index . 2) $inEnv $values.controller.envFrom) }}
{{- /* A null removes the chart's default; an empty text cannot be told from it, so it counts where others are given. */}}
{{- if or (not (index . 3)) (and $given (index . 4)) }}
{{- $lacking = append $lacking (printf "%s (%s)" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $lacking }}
{{- fail (printf "no value is given for %s; if it came from a variable of the shell, that one is not set" (join ", " $lacking)) }}
{{- end }}
{{- end }}

{{/* The container's image. */}}
{{- define "gpu-provisioner.image" -}}
{{- $own := .Values.controller.image }}
{{- $repository := $own.repository }}
{{- if not $repository }}
{{- $repository = printf "%s/kaito-hooks" (include "gpu-provisioner.imageRegistry" .) }}
{{- end }}
{{- $tag := $own.tag | default .Values.image.tag | default .Chart.AppVersion }}
{{- $digest := $own.digest | default (or $own.repository $own.tag | empty | ternary .Values.image.digest "") }}
{{- if $digest }}
{{- printf "%s@%s" $repository $digest }}
{{- else if eq $tag "latest" }}
{{- fail "the image's tag is latest: name a version, so that all replicas run the same image" }}
{{- else }}
{{- printf "%s:%s" $repository $tag }}
{{- end }}
{{- end }}

{{/* Secrets that may pull a Pod's images; umbrella charts write them as names or as [{name}]. */}}
{{- define "gpu-provisioner.pullSecrets" -}}
{{- $secrets := default list .Values.imagePullSecrets }}
{{- range (default dict .Values.global).imagePullSecrets }}
{{- $secrets = append $secrets (kindIs "map" . | ternary . (dict "name" .)) }}
{{- end }}
{{- with uniq $secrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every container of this chart is denied. */}}
{{- define "gpu-provisioner.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Pods of this chart need no rights on their node. */}}
{{- define "gpu-provisioner.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Whether the Pod gets a token that Azure accepts as its identity. */}}
{{- define "gpu-provisioner.workloadIdentity" -}}
{{- if eq .Values.deploymentMode "self-hosted" }}true{{ end }}
{{- end }}

{{/* The fields of agentPool that are set, as JSON; nothing if none is. */}}
{{- define "gpu-provisioner.agentPool" -}}
{{- $fields := dict }}
{{- range $name, $value := .Values.agentPool }}
{{- if $value }}
{{- $fields = set $fields $name $value }}
{{- end }}
{{- end }}
{{- if $fields }}{{ toJson $fields }}{{ end }}
{{- end }}

{{/*
Environment of the controller, as YAML list. What controller.env names is left out here, so that every variable is there
once; an empty setting is left out, so that envFrom can give it.
*/}}
{{- define "gpu-provisioner.env" -}}
{{- $values := .Values }}
{{- $own := dict }}
{{- range $values.controller.env }}
{{- $own = set $own .name true }}
{{- end }}
{{- $cloud := default dict $values.settings.azure }}
{{- $identity := default dict $values.workloadIdentity }}
{{- $variables := list
  (list "DEPLOYMENT_MODE" $values.deploymentMode)
  (list "ARM_SUBSCRIPTION_ID" $cloud.subscriptionId)
  (list "ARM_RESOURCE_GROUP" $cloud.resourceGroup)
  (list "AZURE_CLUSTER_NAME" $cloud.clusterName)
  (list "LOCATION" $cloud.location)
  (list "AZURE_CLIENT_ID" $identity.clientId)
  (list "AZURE_TENANT_ID" $identity.tenantId)
  (list "AZURE_AUTHORITY_HOST" $values.azure.authorityHost)
  (list "ARM_ENDPOINT" $values.azure.armEndpoint)
  (list "ARM_TOKEN_SCOPE" $values.azure.tokenScope)
  (list "ARM_API_VERSION" $values.azure.apiVersion)
  (list "AGENT_POOL" (include "gpu-provisioner.agentPool" .))
  (list "NODE_API" $values.nodeAPI)
  (list "NODE_CLASS_GROUP" $values.nodeClaim.nodeClassRef.group)
  (list "NODE_CLASS_KIND" $values.nodeClaim.nodeClassRef.kind)
  (list "REGISTRATION_TIMEOUT" $values.provisioner.registrationTimeout)
  (list "LAUNCH_TIMEOUT" $values.provisioner.launchTimeout)
  (list "NODE_REPAIR_TIMEOUT" $values.provisioner.nodeRepairTimeout)
  (list "TERMINATION_GRACE_PERIOD" $values.provisioner.terminationGracePeriod)
  (list "MANAGE_BY_LABEL" $values.provisioner.manageByLabel)
  (list "DELETE_ON_INSUFFICIENT_CAPACITY" $values.provisioner.deleteOnInsufficientCapacity)
  (list "GC_INTERVAL" $values.provisioner.gcInterval)
  (list "POOL_POLL_INTERVAL" $values.provisioner.poolPollInterval)
  (list "METRICS_PORT" $values.controller.metrics.port)
  (list "HEALTH_PROBE_PORT" $values.controller.healthProbe.port)
  (list "LOG_LEVEL" (default $values.logLevel $values.controller.logLevel))
  (list "LEADER_ELECTION_NAME" (include "gpu-provisioner.leaseName" .))
  (list "LEADER_ELECTION_NAMESPACE" .Release.Namespace)
}}
{{- if include "gpu-provisioner.workloadIdentity" . }}
{{- $variables = append $variables (list "AZURE_FEDERATED_TOKEN_FILE" "/var/run/secrets/azure/tokens/azure-identity-token") }}
{{- end }}
{{- if $values.azure.caBundle }}
{{- $variables = append $variables (list "REQUESTS_CA_BUNDLE" "/etc/gpu-provisioner/ca/ca.crt") }}
{{- end }}
{{- range $variables }}
{{- $name := index . 0 }}
{{- $value := ternary "" (index . 1 | toString) (kindIs "invalid" (index . 1)) }}
{{- if and $value (not (hasKey $own $name)) }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- if not (hasKey $own "POD_NAME") }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
{{- with $values.controller.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where the Pods of this chart run. */}}
{{- define "gpu-provisioner.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $.Values $key }}
{{- dict $key . | toYaml | nindent 0 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels of hooks; the controller's selector must not catch their Pods. */}}
{{- define "gpu-provisioner.hookLabels" -}}
{{- $own := dict "app.kubernetes.io/name" (printf "%s-hook" (include "gpu-provisioner.name" .)) "app.kubernetes.io/instance" .Release.Name }}
{{- merge $own (default dict .Values.additionalLabels) | toYaml }}
{{- end }}

{{/* Metadata of an object that lives as long as a hook: (dict "root" $ "suffix" "x" "events" "pre-upgrade" "weight" 1 "namespaced" true). */}}
{{- define "gpu-provisioner.hookMetadata" -}}
name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
{{- if .namespaced }}
namespace: {{ .root.Release.Namespace | quote }}
{{- end }}
labels:
  {{- include "gpu-provisioner.hookLabels" .root | nindent 2 }}
annotations:
  {{- /* Helm 3.18 and newer print why a hook failed, or what .logs asks for. */}}
  {{- $own := dict
    "helm.sh/hook" .events
    "helm.sh/hook-weight" (toString .weight)
    "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded"
    "helm.sh/hook-output-log-policy" (default "hook-failed" .logs) }}
  {{- merge $own (default dict .root.Values.additionalAnnotations) | toYaml | nindent 2 }}
{{- end }}

{{/*
What keeps the proxy of a service mesh out of a Pod that ends, because the proxy never would. Istio and Kuma read labels, their older
releases annotations.
*/}}
{{- define "gpu-provisioner.noProxyLabels" -}}
sidecar.istio.io/inject: "false"
kuma.io/sidecar-injection: disabled
{{- end }}

{{/* Binds a hook's ClusterRole to its ServiceAccount; both are called like the binding. */}}
{{- define "gpu-provisioner.hookBinding" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "gpu-provisioner.hookMetadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
subjects:
- kind: ServiceAccount
  name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
  namespace: {{ .root.Release.Namespace | quote }}
{{- end }}

{{/* A hook's Job: kaito_hooks.helm with .command; .configMap mounts the ConfigMap of the hook's name. */}}
{{- define "gpu-provisioner.hookJob" }}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "gpu-provisioner.hookMetadata" (merge (dict "namespaced" true) .) | nindent 2 }}
spec:
  backoffLimit: 3
  # A finding (exit code 2) stays one; only what went wrong on the way to it is tried again.
  podFailurePolicy:
    rules:
    - action: FailJob
      onExitCodes: {operator: In, values: [2]}
  activeDeadlineSeconds: 300
  template:
    metadata:
      labels:
        {{- merge (include "gpu-provisioner.hookLabels" .root | fromYaml) (include "gpu-provisioner.noProxyLabels" . | fromYaml) | toYaml | nindent 8 }}
      annotations:
        {{- include "gpu-provisioner.noProxyLabels" . | nindent 8 }}
        linkerd.io/inject: disabled
        consul.hashicorp.com/connect-inject: "false"
        openservicemesh.io/sidecar-injection: disabled
    spec:
      {{- include "gpu-provisioner.pullSecrets" .root | nindent 6 }}
      restartPolicy: Never
      serviceAccountName: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
      securityContext:
        {{- include "gpu-provisioner.podSecurityContext" .root | nindent 8 }}
      containers:
      - name: {{ .suffix }}
        image: {{ include "gpu-provisioner.image" .root | quote }}
        imagePullPolicy: {{ .root.Values.imagePullPolicy }}
        command: {{ concat (list "python" "-m" "kaito_hooks.helm") .command | toJson }}
        resources:
          {{- toYaml .root.Values.hooks.resources | nindent 10 }}
        securityContext:
          {{- include "gpu-provisioner.containerSecurityContext" .root | nindent 10 }}
        volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if .configMap }}
        - {name: crds, mountPath: /etc/kaito/crds, readOnly: true}
        {{- end }}
      volumes:
      - name: tmp
        emptyDir: {}
      {{- if .configMap }}
      - name: crds
        configMap:
          name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
      {{- end }}
      {{- include "gpu-provisioner.scheduling" .root | nindent 6 }}
{{- end }}
