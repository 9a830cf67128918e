// Istio's control plane, fed with the registrations of a ZooKeeper: a peer of the bench. Each service
// is a ServiceEntry with its instances as endpoints. They go straight into a config store of istiod's
// own process, object by object, as its Kubernetes source would hand them over: kinder to it than
// MCP over xDS, whose every change carries the complete set. Everything behind the store is istiod as
// it is, with its defaults; its environment variables work (PILOT_DEBOUNCE_AFTER, …).
//
// A stamp of the rig stands in an instance's metadata, which istiod does not pass on; it goes into the
// label of the canonical revision, which istiod sends with every endpoint.
//
// With `mcp` it is fed as the common bridges do it, see mcp.go.
//
//	istiod CONNECT ROOT CLIENTS ADMIN [mcp]
package main

import (
	"fmt"
	"log"
	"mirror"
	"net/http"
	"os"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pilot/pkg/bootstrap"
	"istio.io/istio/pilot/pkg/config/memory"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"
	"istio.io/istio/pkg/ctrlz"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/multicluster"
	istiolog "istio.io/istio/pkg/log"
)

const (
	namespace = "default"
	port      = 8080
	revision  = "service.istio.io/canonical-revision"
)

func main() {
	connect, root, clients, admin := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	var ready atomic.Bool
	http.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	go func() { log.Fatal(http.ListenAndServe(admin, nil)) }()
	quiet()

	tree, err := mirror.Connect(connect, root, workload)
	check(err)
	stop := make(chan struct{})
	args := arguments(clients)
	var put func(config.Config)
	var stores []model.ConfigStoreController
	if len(os.Args) > 5 {
		feed := newFeed()
		put = feed.put
		args.MeshConfigFile = feed.listen()
	} else {
		store := memory.NewController(memory.Make(collections.Pilot))
		put = func(entry config.Config) { write(store, entry) }
		stores = append(stores, store)
	}
	on := func(service string, endpoints []*networking.WorkloadEntry) { put(entry(service, endpoints)) }
	check(tree.Load(on))
	server, err := bootstrap.NewServer(args, func(s *bootstrap.Server) {
		s.ConfigStores = append(s.ConfigStores, stores...)
		withoutKubernetes(s, args, stop)
	})
	check(err)
	go func() {
		for !server.XDSServer.IsServerReady() {
			time.Sleep(time.Millisecond)
		}
		ready.Store(true)
		tree.Run(on)
	}()
	check(server.Start(stop))
	select {}
}

// withoutKubernetes gives istiod a list of clusters over an empty Kubernetes of its own tests: without
// one this version does not get through its start. The field has no other way in. Nothing is read from
// it but that there is one namespace.
func withoutKubernetes(server *bootstrap.Server, args *bootstrap.PilotArgs, stop chan struct{}) {
	client := kube.NewFakeClient(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: namespace}})
	clusters := multicluster.NewController(multicluster.ControllerOptions{
		Client:          client,
		ClusterID:       "Kubernetes",
		SystemNamespace: args.Namespace,
		Debugger:        args.KrtDebugger,
	})
	field := reflect.ValueOf(server).Elem().FieldByName("multiclusterController")
	field = reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
	field.Set(reflect.ValueOf(clusters))
	check(clusters.Run(stop))
	client.RunAndWait(stop)
}

// arguments are istiod's defaults, without Kubernetes, certificates and webhooks.
func arguments(clients string) *bootstrap.PilotArgs {
	return bootstrap.NewPilotArgs(func(p *bootstrap.PilotArgs) {
		p.CtrlZOptions = ctrlz.DefaultOptions()
		p.CtrlZOptions.Port = 0
		p.ServerOptions = bootstrap.DiscoveryServerOptions{
			HTTPAddr:       "127.0.0.1:0",
			GRPCAddr:       clients,
			MonitoringAddr: "127.0.0.1:0",
		}
		p.RegistryOptions.KubeOptions.DomainSuffix = "cluster.local"
		p.ShutdownDuration = 0
	})
}

func write(store *memory.Controller, config config.Config) {
	_, err := store.Update(config)
	if err != nil {
		_, err = store.Create(config)
	}
	check(err)
}

func entry(service string, endpoints []*networking.WorkloadEntry) config.Config {
	return config.Config{
		Meta: config.Meta{
			GroupVersionKind: gvk.ServiceEntry,
			Name:             service,
			Namespace:        namespace,
		},
		Spec: &networking.ServiceEntry{
			Hosts:      []string{service + ".mesh"},
			Ports:      []*networking.ServicePort{{Number: port, Name: "http", Protocol: "HTTP"}},
			Location:   networking.ServiceEntry_MESH_INTERNAL,
			Resolution: networking.ServiceEntry_STATIC,
			Endpoints:  endpoints,
		},
	}
}

func workload(read *mirror.Instance) *networking.WorkloadEntry {
	labels := map[string]string{"version": read.Metadata["version"], "team": read.Metadata["team"]}
	if stamp, is := read.Metadata["at"]; is {
		labels[revision] = stamp
	}
	return &networking.WorkloadEntry{
		Address:  read.Host,
		Ports:    map[string]uint32{"http": read.Port},
		Weight:   read.Weight,
		Locality: "r/" + read.Zone,
		Labels:   labels,
	}
}

// quiet leaves errors only, as for the other sides.
func quiet() {
	options := istiolog.DefaultOptions()
	options.SetDefaultOutputLevel(istiolog.OverrideScopeName, istiolog.ErrorLevel)
	check(istiolog.Configure(options))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		os.Exit(1)
	}
}
