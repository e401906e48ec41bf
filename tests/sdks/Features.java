// The features of pusher-java-client, with two clients. Prints one line for each that works, in any order.

import com.pusher.client.Pusher;
import com.pusher.client.PusherOptions;
import com.pusher.client.channel.PresenceChannelEventListener;
import com.pusher.client.channel.PrivateChannel;
import com.pusher.client.channel.PrivateChannelEventListener;
import com.pusher.client.channel.PrivateEncryptedChannelEventListener;
import com.pusher.client.channel.PusherEvent;
import com.pusher.client.channel.User;
import com.pusher.client.util.HttpChannelAuthorizer;
import com.pusher.client.util.HttpUserAuthenticator;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;

public class Features {
    static String key, host, endpoint;
    static int port;

    public static void main(String[] arguments) throws Exception {
        key = arguments[0];
        host = arguments[1];
        port = Integer.parseInt(arguments[2]);
        endpoint = arguments[3];
        Pusher ann = client("ann");
        Pusher bob = client("bob");

        ann.subscribe("news").bind("created", event -> say("public " + event.getData()));

        CountDownLatch listening = new CountDownLatch(2);
        ann.subscribePrivate("private-room", new Listener() {
            @Override
            public void onSubscriptionSucceeded(String channel) {
                listening.countDown();
            }

            @Override
            public void onEvent(PusherEvent event) {
                say("client event " + event.getData());
            }
        }, "client-typing");
        PrivateChannel room = bob.subscribePrivate("private-room", new Listener() {
            @Override
            public void onSubscriptionSucceeded(String channel) {
                listening.countDown();
            }
        });

        ann.subscribePrivateEncrypted("private-encrypted-orders", new Listener() {
            @Override
            public void onEvent(PusherEvent event) {
                say("decrypted " + event.getData());
            }
        }, "created");

        ann.user().bind("created", event -> say("user " + event.getData()));
        ann.signin();

        ann.subscribePresence("presence-room", new Listener() {
            @Override
            public void onUsersInformationReceived(String channel, Set<User> users) {
                bob.subscribePresence("presence-room", new Listener() {
                    @Override
                    public void onUsersInformationReceived(String channel, Set<User> users) {
                        Set<String> names = new TreeSet<>();
                        users.forEach(user -> names.add(user.getId()));
                        say("members " + names);
                    }
                });
            }

            @Override
            public void userSubscribed(String channel, User user) {
                say("joined " + user.getId());
            }
        });

        listening.await();
        room.trigger("client-typing", "{\"on\":true}");
        System.in.read(); // until the test has seen everything
        ann.disconnect();
        bob.disconnect();
        System.exit(0);
    }

    static Pusher client(String user) {
        PusherOptions options = new PusherOptions()
            .setHost(host)
            .setWsPort(port)
            .setUseTLS(false)
            .setChannelAuthorizer(new HttpChannelAuthorizer(endpoint + "/channel/" + user))
            .setUserAuthenticator(new HttpUserAuthenticator(endpoint + "/user/" + user));
        Pusher pusher = new Pusher(key, options);
        pusher.connect();
        return pusher;
    }

    static synchronized void say(String line) {
        System.out.println(line);
    }

    static class Listener
        implements PrivateChannelEventListener, PresenceChannelEventListener, PrivateEncryptedChannelEventListener {
        @Override
        public void onSubscriptionSucceeded(String channel) {}

        @Override
        public void onAuthenticationFailure(String message, Exception cause) {
            say("refused " + message);
        }

        @Override
        public void onUsersInformationReceived(String channel, Set<User> users) {}

        @Override
        public void userSubscribed(String channel, User user) {}

        @Override
        public void userUnsubscribed(String channel, User user) {}

        @Override
        public void onDecryptionFailure(String event, String reason) {
            say("not decrypted " + reason);
        }

        @Override
        public void onEvent(PusherEvent event) {}
    }
}
